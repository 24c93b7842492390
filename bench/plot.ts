/** A log-log chart of measured times beside the operation count, as an SVG file. */
import { scaleLog } from "d3-scale";
import { line } from "d3-shape";
import { html, textOf, trusted } from "../src/grpo/report/html.ts";
import type { Cost } from "./cost.ts";

export interface Series {
  /** What is varied. */
  readonly quantity: string;
  readonly points: readonly (Cost & { readonly x: number; readonly ms: number })[];
}

const SIZE = { width: 480, height: 300 };
const MARGIN = { top: 44, right: 26, bottom: 40, left: 56 };

const STYLE = trusted(`<style>
text { font: 12px system-ui, sans-serif; fill: #444 } .title { font-weight: 600; fill: #111 } .y { text-anchor: end }
.x { text-anchor: middle } .rule { stroke: #e4e4e4 } path { fill: none; stroke-width: 2 }
.ms { stroke: #1f6feb } circle { fill: #1f6feb } .flops { stroke: #b35900; stroke-dasharray: 5 4 }
.key-ms { fill: #1f6feb } .key-flops { fill: #b35900 }
</style>`);

/**
 * Milliseconds over the quantity, and the operation count drawn through the first point: where the measured line stays
 * below the dashed one, time grows more slowly than the work.
 */
export function scalingPlot({ quantity, points }: Series, title: string): string {
  const first = points[0]!;
  const byCount = points.map(({ x, flops }) => ({ x, ms: (first.ms * flops) / first.flops }));
  const xs = points.map((point) => point.x);
  const all = [...points, ...byCount].map(({ ms }) => ms);
  const x = scaleLog([Math.min(...xs), Math.max(...xs)], [MARGIN.left, SIZE.width - MARGIN.right]);
  const y = scaleLog([Math.min(...all), Math.max(...all)], [SIZE.height - MARGIN.bottom, MARGIN.top]).nice();
  const path = line<{ x: number; ms: number }>().x((point) => x(point.x)).y((point) => y(point.ms)).digits(1);
  const decades = y.ticks().filter((tick) => Math.abs(Math.log10(tick) % 1) < 1e-9);
  const markup = html`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${SIZE.width} ${SIZE.height}" role="img"
 aria-label="${title}, milliseconds by ${quantity}">${STYLE}
<rect width="${SIZE.width}" height="${SIZE.height}" style="fill: #fff"/>
<text class="title" x="${MARGIN.left}" y="16">${title}</text>
<text x="${MARGIN.left}" y="30"><tspan class="key-ms">measured ms</tspan>,
<tspan class="key-flops">operation count through the first point</tspan></text>
${decades.map((tick) => html`<line class="rule" x1="${MARGIN.left}" x2="${SIZE.width - MARGIN.right}"
 y1="${y(tick).toFixed(1)}" y2="${y(tick).toFixed(1)}"/>
<text class="y" x="${MARGIN.left - 6}" y="${(y(tick) + 4).toFixed(1)}">${tick}</text>`)}
${points.map((point) => html`
<text class="x" x="${x(point.x).toFixed(1)}" y="${SIZE.height - 22}">${label(point.x)}</text>`)}
<text class="x" x="${SIZE.width / 2}" y="${SIZE.height - 6}">${quantity}</text>
<path class="flops" d="${path(byCount) ?? ""}"/><path class="ms" d="${path(points) ?? ""}"/>
${points.map((point) => html`<circle cx="${x(point.x).toFixed(1)}" cy="${y(point.ms).toFixed(1)}" r="3"/>`)}
</svg>
`;
  return textOf(markup);
}

/** 2164672 -> 2.2M */
function label(value: number): string {
  return value >= 1e5 ? `${(value / 1e6).toFixed(1)}M` : String(value);
}
