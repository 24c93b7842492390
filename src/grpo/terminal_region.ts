/**
 * A region at the bottom of a terminal that is drawn again and again, while lines scroll by above it.
 *
 * The cursor stays visible and no setting of the terminal is changed, so there is nothing to restore: a run that is
 * interrupted, killed or crashes leaves a usable terminal, with the last region standing in it.
 */
import { Console } from "node:console";
import { styleText } from "node:util";
import stringWidth from "string-width";

/** A stream that may be a terminal; process.stdout is one. */
export type TerminalStream = NodeJS.WritableStream & {
  readonly isTTY?: boolean;
  readonly columns?: number;
  readonly rows?: number;
  /** False with NO_COLOR. */
  hasColors?(): boolean;
};

export type Style = "bold" | "dim" | "cyan" | "green" | "yellow";

/** A line of the region: pieces of text that hold no control characters, each with its own look. */
export type Line = readonly (readonly [text: string, style?: Style | undefined])[];

export interface Region {
  /** A line that stays, above the region: at once, or with the next redraw when that was less than 0.1 s ago. */
  print(text: string, style?: Style): void;
  /** Draws the region anew, unless that was less than 0.1 s ago and "now" is not asked for: then a little later. */
  refresh(when: "now" | "soon"): void;
  /** Erases the region; lines printed so far stay. */
  close(): void;
}

const REDRAW_MS = 100;

const UP = (rows: number): string => `\x1b[${rows}A`;
const ERASE_BELOW = "\x1b[0J";

/** Terminals that know these show what is between them at once, without flicker; the others ignore them. */
const [BEGIN_UPDATE, END_UPDATE] = ["\x1b[?2026h", "\x1b[?2026l"];

/** `draw` returns the lines for a terminal of that size, fewer than it has rows; longer lines are cut. */
export function openRegion(terminal: TerminalStream, draw: (columns: number, rows: number) => readonly Line[]): Region {
  // A console, because it lives on when the terminal goes away: a long run should.
  const { log } = new Console(terminal);
  const paint = (text: string, style?: Style): string =>
    style && terminal.hasColors?.() ? styleText(style, text, { validateStream: false }) : text;
  let printed: string[] = [];
  let drawn: readonly string[] = [];
  let drawnAt = -Infinity;
  let timer: NodeJS.Timeout | undefined;

  /** From the line below the region, where the cursor is, to its first line. */
  function erase(): string {
    if (drawn.length === 0) return "";
    // A terminal that became narrower has broken the longer lines.
    const rows = drawn.map((line) => Math.max(1, Math.ceil(stringWidth(line) / columnsOf(terminal))));
    return `\r${UP(rows.reduce((sum, count) => sum + count))}${ERASE_BELOW}`;
  }

  function show(lines: readonly string[]): void {
    clearTimeout(timer);
    timer = undefined;
    drawnAt = performance.now();
    if (printed.length === 0 && lines.join("\n") === drawn.join("\n")) return;
    const text = [...printed, ...lines].join("\n");
    // `log` adds a line break, also where there is nothing to show.
    log(BEGIN_UPDATE + erase() + (text === "" ? UP(1) : text) + END_UPDATE);
    [printed, drawn] = [[], lines];
  }

  const redraw = (): void => {
    const columns = columnsOf(terminal);
    // The last column stays free: some terminals begin a new line when it is written.
    const lines = draw(columns, terminal.rows ?? 24).map((line) => cut(line, columns - 1));
    show(lines.map((line) => line.map(([text, style]) => paint(text, style)).join("")));
  };
  const refresh = (when: "now" | "soon"): void => {
    const wait = drawnAt + REDRAW_MS - performance.now();
    if (when === "now" || wait <= 0) redraw();
    else timer ??= setTimeout(redraw, wait);
  };
  const onResize = (): void => refresh("soon");

  terminal.on("resize", onResize);
  return {
    print(text, style) {
      printed.push(paint(text, style));
      refresh("soon");
    },
    refresh,
    close() {
      terminal.off("resize", onResize);
      show([]);
    },
  };
}

/** 80 where unknown. */
function columnsOf({ columns }: TerminalStream): number {
  return columns || 80;
}

const graphemes = new Intl.Segmenter(undefined, { granularity: "grapheme" });

/** The part of a line that fits into so many columns, "…" at its end when that is not all. */
export function cut(line: Line, columns: number): Line {
  if (stringWidth(line.map(([text]) => text).join("")) <= columns) return line;
  let room = columns - 1;
  const kept: Line[number][] = [];
  for (const [text, style] of line) {
    let part = "";
    for (const { segment } of graphemes.segment(text)) {
      room -= stringWidth(segment);
      if (room < 0) return [...kept, [`${part}…`, style]];
      part += segment;
    }
    kept.push([part, style]);
  }
  return kept;
}
