/** What every benchmark prints: a table on the console. */

/** One line of a table, by column title. */
export type Row = Readonly<Record<string, string | number>>;

/** Prints rows under all column titles that occur; numbers are right-aligned, with three figures or one decimal. */
export function printTable(title: string, rows: readonly Row[]): void {
  console.log(`\n${formatTable(title, rows)}`);
}

/** The table as text, without a final line break. */
export function formatTable(title: string, rows: readonly Row[]): string {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const cells = rows.map((row) => columns.map((column) => formatCell(row[column] ?? "")));
  const widths = columns.map((column, i) => Math.max(column.length, ...cells.map((line) => line[i]!.length)));
  const format = (line: readonly string[]): string =>
    line.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join("  ").trimEnd();
  return [title, format(columns), ...cells.map(format)].join("\n");
}

function formatCell(value: string | number): string {
  if (typeof value === "string") return value;
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 10 ? value.toFixed(1) : value.toPrecision(3);
}
