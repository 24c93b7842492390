/** Curves from records: which number over which train step, thinned to what a page can show. */
import { numberAt, stepOf, type Fields } from "./data.ts";

export interface Point {
  /** In train steps. */
  readonly x: number;
  /** Null: a gap. */
  readonly y: number | null;
  /** A band around y. */
  readonly low?: number;
  readonly high?: number;
}

/** What becomes of several points where one is drawn. */
export type Reduction = "mean" | "min" | "max";

export interface Line {
  readonly label: string;
  readonly points: readonly Point[];
  readonly reduction?: Reduction;
  /** Records that belong together, the gradient steps of a train step: thinning keeps them together. */
  readonly unit?: number;
}

/** One point per record, a gap where the number is missing; empty when no record has it. */
export function pointsOf(
  records: readonly Fields[],
  key: string,
  xOf: (record: Fields) => number = stepOf,
): Point[] {
  const points = records.map((record) => ({ x: xOf(record), y: numberAt(record, key) }));
  return points.some(({ y }) => y !== null) ? points : [];
}

/** Gradient steps per train step. */
export function gradStepsOf(updates: readonly Fields[]): number {
  return updates.reduce((most, record) => Math.max(most, numberAt(record, "grad_step") ?? 1), 1);
}

/**
 * Where gradient step k of `perStep` lies between train steps: the last one of step 3 at 3, so that it meets an
 * evaluation made after step 3.
 */
export function gradStepPosition(record: Fields, perStep: number): number {
  return stepOf(record) - 1 + (numberAt(record, "grad_step") ?? perStep) / perStep;
}

/** `points` with the band y - spread to y + spread, the spread under `key` of the same records. */
export function withBand(points: readonly Point[], records: readonly Fields[], key: string): Point[] {
  return points.map((point, i) => {
    const spread = numberAt(records[i], key);
    return point.y === null || spread === null
      ? point
      : { ...point, low: point.y - spread, high: point.y + spread };
  });
}

/**
 * At most `limit` points, each standing for as many neighbours. Bands are averaged; with `envelope`, a mean without a
 * band gets one from the smallest to the largest of its points, so that no spike is lost.
 */
export function thin({ points, reduction = "mean", unit = 1 }: Line, limit: number, envelope = false): Point[] {
  const size = bucketSize(points.length, limit, unit);
  if (size <= 1) return [...points];
  return Array.from({ length: Math.ceil(points.length / size) }, (_, i) => {
    const part = points.slice(i * size, (i + 1) * size);
    const { x } = part.at(-1)!;
    const known = part.filter((point): point is Point & { y: number } => point.y !== null);
    if (known.length === 0) return { x, y: null };
    const values = known.map(({ y }) => y);
    const low = Math.min(...values);
    const high = Math.max(...values);
    const y = reduction === "min" ? low : reduction === "max" ? high : mean(values);
    const bands = known.filter((point): point is Required<Point> & { y: number } => point.low !== undefined);
    if (bands.length > 0) {
      return { x, y, low: mean(bands.map((point) => point.low)), high: mean(bands.map((point) => point.high)) };
    }
    return envelope ? { x, y, low, high } : { x, y };
  });
}

/** Records per drawn point: whole train steps, unless those alone are too many or hold more than half of the points. */
export function bucketSize(records: number, limit: number, unit = 1): number {
  const size = Math.ceil(records / limit);
  return size > 1 && 2 * size >= unit ? unit * Math.ceil(size / unit) : size;
}

/** The latest number of a curve. */
export function lastOf(points: readonly Point[]): number | null {
  return points.findLast(({ y }) => y !== null)?.y ?? null;
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
