/** What every benchmark shares: a timer that reports a median, and a table on the console. */
import { gpu } from "../src/tensor/device.ts";
import { scope } from "../src/tensor/memory.ts";
import { submit } from "../src/tensor/recorder.ts";

/** One line of a table, by column title. */
export type Row = Readonly<Record<string, string | number>>;

/** The middle value. @throws RangeError for no values. */
export function median(values: readonly number[]): number {
  if (values.length === 0) throw new RangeError("median: no values");
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1]! + sorted[sorted.length >> 1]!) / 2;
}

/**
 * Median milliseconds that the GPU needs for what `body` records, of `runs` runs after a warm-up. Each run repeats
 * `body` for about 10 ms, so that submitting and waiting hardly count.
 */
export async function medianMilliseconds(body: () => void, runs = 7): Promise<number> {
  const run = async (repeats: number): Promise<number> => {
    const start = performance.now();
    for (let i = 0; i < repeats; i++) scope(body);
    submit();
    await gpu().device.queue.onSubmittedWorkDone();
    return (performance.now() - start) / repeats;
  };
  await run(1); // compiles
  const repeats = Math.ceil(10 / (await run(1)));
  const times: number[] = [];
  for (let i = 0; i < runs; i++) times.push(await run(repeats));
  return median(times);
}

/** Prints rows under the column titles of the first one; numbers are right-aligned with one decimal. */
export function printTable(title: string, rows: readonly Row[]): void {
  const columns = Object.keys(rows[0] ?? {});
  const cells = rows.map((row) => columns.map((column) => {
    const value = row[column] ?? "";
    return typeof value === "number" ? value.toFixed(1) : value;
  }));
  const widths = columns.map((column, i) => Math.max(column.length, ...cells.map((line) => line[i]!.length)));
  const format = (line: readonly string[]): string =>
    line.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join("  ");
  console.log([`\n${title}`, format(columns), ...cells.map(format)].join("\n"));
}
