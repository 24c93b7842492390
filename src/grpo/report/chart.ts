/**
 * Charts as inline SVG: scales, ticks and paths by d3-scale and d3-shape, colours by the classes of report.css. Nothing
 * in them runs, loads or depends on anything but the numbers.
 */
import { scaleLinear, scaleLog } from "d3-scale";
import { area, line } from "d3-shape";
import { count, figure, html, type Html } from "./html.ts";
import type { Line, Point } from "./series.ts";

export interface Size {
  readonly width: number;
  readonly height: number;
}

/** In units that are about a pixel where a card has its usual width; text stays legible when that is a phone's. */
const CARD: Size = { width: 380, height: 190 };
export const WIDE: Size = { width: 760, height: 280 };
export const HALF: Size = { width: 560, height: 210 };

export interface ChartOptions {
  readonly lines: readonly Line[];
  /** Dashed lines at fixed heights, always in view. */
  readonly guides?: readonly { readonly value: number; readonly label: string }[];
  /** Rounding must not look like a curve: the y axis covers at least this much. */
  readonly minSpan?: number;
  /** Logarithmic when the numbers are positive and span more than two decades. */
  readonly canBeLog?: boolean;
  /** Bands span what thinning left out, and are drawn stronger. */
  readonly isEnvelope?: boolean;
  /** For those who cannot see it. */
  readonly describe: string;
}

const MARGIN = { top: 12, right: 12, bottom: 24, left: 48 };
/** More points than this get no dots and no tooltips. */
const MAX_DOTS = 60;

type Scale = (value: number) => number;
type DrawnPoint = Point & { y: number };

/** Curves over train steps. Line i has the colour of class s{i}. */
export function lineChart(options: ChartOptions, size: Size = CARD): Html {
  const { lines, guides = [] } = options;
  const { x, xTicks } = stepScale(lines.flatMap(({ points }) => points.map((point) => point.x)), size);
  const { y, yTicks, format } = valueScale(options, size);
  const bands = area<Point>()
    .defined(({ low, high }) => low !== undefined && high !== undefined)
    .x((point) => x(point.x))
    .y0(({ low }) => y(low!))
    .y1(({ high }) => y(high!))
    .digits(1);
  const path = line<Point>()
    .defined((point) => point.y !== null)
    .x((point) => x(point.x))
    .y((point) => y(point.y!))
    .digits(1);
  const marks = lines.map(({ label, points }, i) => {
    const dots = points.length > MAX_DOTS ? [] : points.filter((point): point is DrawnPoint => point.y !== null);
    const hasBand = points.some(({ low }) => low !== undefined);
    const few = points.length <= MAX_DOTS && "few";
    const bandClass = options.isEnvelope ? "band envelope" : "band";
    return html`<g class="s${i} ${few}">${hasBand && html`<path class="${bandClass}" d="${bands(points) ?? ""}"/>`}
<path class="line" d="${path(points) ?? ""}"/>
${dots.map((point) => html`<circle cx="${round(x(point.x))}" cy="${round(y(point.y))}" r="2.6">
<title>${label}, step ${figureOfStep(point.x)}: ${figure(point.y)}</title></circle>`)}</g>`;
  });
  const right = size.width - MARGIN.right;
  const guideMarks = guides.map(({ value, label }) => html`
<path class="guide" d="M${MARGIN.left} ${round(y(value))}H${right}"/>
<text class="guide-label" x="${right}" y="${round(y(value) - 4)}">${label}</text>`);
  return frame(size, options.describe, html`${axes(size, x, xTicks, y, yTicks, format)}${marks}${guideMarks}`);
}

export interface Bar {
  readonly x: number;
  /** One part per series, from the bottom up. */
  readonly parts: readonly number[];
}

/** Stacked bars over train steps. Part i has the colour of class s{i}. */
export function barChart(bars: readonly Bar[], describe: string, size: Size = CARD): Html {
  const stacked = bars.map(({ x, parts }) => ({ x, y: parts.reduce((sum, part) => sum + part, 0) }));
  const { x, xTicks } = stepScale(bars.map((bar) => bar.x), size, 0.5);
  const { y, yTicks, format } = valueScale({ lines: [{ label: "", points: [{ x: 0, y: 0 }, ...stacked] }] }, size);
  const steps = bars.length > 1 ? (bars.at(-1)!.x - bars[0]!.x) / (bars.length - 1) : 1;
  const width = Math.min(36, Math.max(1, 0.7 * (x(steps) - x(0))));
  const marks = bars.map(({ x: step, parts }) => {
    let below = 0;
    return parts.map((part, i) => {
      const top = round(y(below + part));
      const height = round(y(below) - y(below + part));
      below += part;
      return html`<rect class="s${i}" x="${round(x(step) - width / 2)}" y="${top}" width="${round(width)}"
 height="${height}"><title>step ${figureOfStep(step)}: ${figure(part)} s</title></rect>`;
    });
  });
  return frame(size, describe, html`${axes(size, x, xTicks, y, yTicks, format)}<g class="bars">${marks}</g>`);
}

function frame({ width, height }: Size, describe: string, content: Html): Html {
  return html`<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${describe}">${content}</svg>`;
}

function axes(
  { width, height }: Size,
  x: Scale,
  xTicks: readonly number[],
  y: Scale,
  yTicks: readonly number[],
  format: (value: number) => string,
): Html {
  const bottom = height - MARGIN.bottom;
  return html`${yTicks.map((tick) => html`
<path class="rule" d="M${MARGIN.left} ${round(y(tick))}H${width - MARGIN.right}"/>
<text class="y" x="${MARGIN.left - 8}" y="${round(y(tick) + 4)}">${format(tick)}</text>`)}
<path class="axis" d="M${MARGIN.left} ${bottom}H${width - MARGIN.right}"/>
<text class="y" x="${MARGIN.left - 8}" y="${bottom + 18}">step</text>
${xTicks.map((tick) => html`<text class="x" x="${round(x(tick))}" y="${bottom + 18}">${count(tick)}</text>`)}`;
}

function stepScale(steps: readonly number[], size: Size, padding = 0): { x: Scale; xTicks: number[] } {
  const [low, high] = [smallest(steps), largest(steps)];
  const pad = low === high ? 0.5 : padding;
  const x = scaleLinear([low - pad, high + pad], [MARGIN.left + 4, size.width - MARGIN.right - 4]);
  return { x, xTicks: x.ticks(size.width / 70).filter((tick) => Number.isInteger(tick)) };
}

function valueScale(
  { lines, guides = [], minSpan = 0, canBeLog = false }: Omit<ChartOptions, "describe">,
  size: Size,
): { y: Scale; yTicks: number[]; format: (value: number) => string } {
  const values = [
    ...lines.flatMap(({ points }) => points.flatMap(({ y, low, high }) => [y, low, high])),
    ...guides.map(({ value }) => value),
  ].filter((value) => typeof value === "number");
  let [low, high] = [smallest(values), largest(values)];
  const range = [size.height - MARGIN.bottom, MARGIN.top];
  if (canBeLog && low > 0 && high / low > 100) {
    const y = scaleLog([low, high], range).nice();
    const decades = y.ticks().filter((tick) => Math.abs(Math.log10(tick) % 1) < 1e-9);
    const every = Math.ceil(decades.length / 5);
    return { y, yTicks: decades.filter((_, i) => i % every === 0), format: figureOfTick };
  }
  const span = Math.max(minSpan, low === high ? Math.abs(low) || minSpan || 1 : 0);
  if (high - low < span) {
    // Around the values, but not below zero for numbers that never are.
    const middle = (low + high) / 2;
    const bottom = low >= 0 ? Math.max(0, middle - span / 2) : middle - span / 2;
    [low, high] = [bottom, bottom + span];
  }
  const y = scaleLinear([low, high], range).nice(4);
  return { y, yTicks: y.ticks(4), format: tickFormat(y.ticks(4)) };
}

/** As many decimals as tell neighbours apart, the same on all ticks of an axis. */
function tickFormat(ticks: readonly number[]): (value: number) => string {
  const most = Math.max(...ticks.map(Math.abs));
  if (most >= 1e5 || most < 1e-2) return figureOfTick;
  const decimals = [0, 1, 2, 3, 4, 5].find((digits) => ticks.every((tick) => isRounded(tick, digits, most)));
  return (value) => value.toFixed(decimals ?? 5).replace("-", "\u2212");
}

function isRounded(value: number, digits: number, scale: number): boolean {
  return Math.abs(value - Number(value.toFixed(digits))) < 1e-9 * scale;
}

function figureOfTick(value: number): string {
  const rounded = Number(value.toPrecision(3));
  const size = Math.abs(rounded);
  const text = size === 0 || (size >= 1e-2 && size < 1e5) ? String(rounded) : rounded.toExponential();
  return text.replace("e+", "e").replaceAll("-", "\u2212");
}

/** Gradient steps lie between train steps, thinned points anywhere. */
function figureOfStep(step: number): string {
  return String(round(step));
}

function round(value: number): number {
  return Math.round(10 * value) / 10;
}

/** `Math.min` of more numbers than a call can take. */
function smallest(values: readonly number[]): number {
  return values.reduce((least, value) => Math.min(least, value), Infinity);
}

function largest(values: readonly number[]): number {
  return values.reduce((most, value) => Math.max(most, value), -Infinity);
}
