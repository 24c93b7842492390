/** Rows of a table by token id; how backward stays deterministic without atomics is told in `embedding.wgsl`. */
import { gpu } from "./device.ts";
import { fillInto } from "./elementwise.ts";
import { kernel, launch } from "./kernel.ts";
import { scope } from "./memory.ts";
import { rowRanges, type Range } from "./ranges.ts";
import { expectShape } from "./rows.ts";
import { ShapeError, show, type Shape } from "./shape.ts";
import { empty, size, tensor, type Destination, type Tensor } from "./tensor.ts";

/**
 * Token ids on the GPU, and on the host, where backward groups equal ids. Ids drawn on the GPU have an empty host copy:
 * they can be looked up, but not differentiated through.
 */
export interface TokenIds {
  readonly tensor: Tensor;
  readonly host: Uint32Array;
}

const forwardKernel = kernel({
  shader: "embedding",
  entry: "embedding",
  buffers: ["table", "ids", "y"],
  params: ["rows", "cols", "firstRow", "tableRows", "vocabulary"],
  bf16: { table: "TABLE_BF16" },
});
const backwardKernel = kernel({
  shader: "embedding",
  entry: "embeddingBackward",
  buffers: ["segmentTable", "occurrences", "dy", "dTable"],
  params: ["cols", "segments", "adds"],
});

/** Uploads token ids; the shape defaults to [number of ids]. @throws RangeError for a negative or fractional id. */
export function tokenIds(host: Uint32Array | readonly number[], shape: Shape = [host.length]): TokenIds {
  const ids = Uint32Array.from(host);
  const bad = host.findIndex((id, i) => id !== ids[i]);
  if (bad >= 0) throw new RangeError(`tokenIds: ${host[bad]} at position ${bad} is not a token id`);
  return { tensor: tensor(ids, shape), host: ids };
}

/**
 * table [V, C], float32 or bf16, ids of any shape -> float32 [...ids shape, C] (torch.nn.functional.embedding).
 * @throws RangeError when an id is not below V.
 */
export function embedding(table: Tensor, ids: TokenIds): Tensor {
  const [vocabulary, cols] = tableSize("embedding", table.shape);
  const bad = ids.host.findIndex((id) => id >= vocabulary);
  if (bad >= 0) {
    throw new RangeError(
      `embedding: id ${ids.host[bad]} at position ${bad}, but the table has only ${vocabulary} rows. ` +
        "Fix: encode the text with this model's own tokenizer",
    );
  }
  const rows = size(ids.tensor);
  const y = empty([...ids.tensor.shape, cols]);
  for (const { start, count, views } of rowRanges({ table })) {
    const params = { rows, cols, firstRow: start, tableRows: count, vocabulary };
    launch(forwardKernel, { ...views, ids: ids.tensor, y }, params, rows, { WORKGROUP: gpu().rowThreads });
  }
  return y;
}

/**
 * dTable [V, C], left in `into` if there is one: row `id` is the sum of dy over the positions of that id, in order;
 * exactly 0 where there is none.
 * @throws Error when the ids have no host copy.
 */
export function embeddingBackward(
  dy: Tensor,
  ids: TokenIds,
  tableShape: Shape,
  into: Destination | null = null,
): Tensor {
  const [, cols] = tableSize("embeddingBackward", tableShape);
  expectShape("embeddingBackward", "dy", dy, [...ids.tensor.shape, cols]);
  if (ids.host.length !== size(ids.tensor)) {
    throw new Error("embeddingBackward: ids drawn on the GPU have no host copy. Fix: read them back, then tokenIds()");
  }
  return scope(() => {
    const dTable = into?.tensor ?? empty(tableShape);
    if (!into?.adds) fillInto(dTable, 0);
    const { segments, ...grouped } = groupById(ids.host);
    const occurrences = tensor(grouped.occurrences);
    for (const { views, ...rows } of rowRanges({ dTable })) {
      const inRange = segmentsOf(segments, rows);
      const segmentTable = tensor(Uint32Array.from(inRange.flat()));
      const params = { cols, segments: inRange.length, adds: into?.adds ? 1 : 0 };
      const buffers = { segmentTable, occurrences, dy, ...views };
      launch(backwardKernel, buffers, params, inRange.length, { WORKGROUP: gpu().rowThreads });
    }
    return dTable;
  });
}

/** One id and its positions, occurrences[first .. end - 1]. */
type Segment = readonly [id: number, first: number, end: number];

/** The segments of these rows of the table, ids counted from the first of them. */
function segmentsOf(segments: readonly Segment[], { start, count }: Range): Segment[] {
  return segments
    .filter(([id]) => id >= start && id < start + count)
    .map(([id, first, end]) => [id - start, first, end]);
}

/** Positions grouped by id: [7, 5, 7] -> segments (7, 0, 2) (5, 2, 3) over occurrences [0, 2, 1]. */
function groupById(ids: Uint32Array): { segments: Segment[]; occurrences: Uint32Array } {
  const positions = new Map<number, number[]>();
  ids.forEach((id, i) => {
    const group = positions.get(id);
    if (group) group.push(i);
    else positions.set(id, [i]);
  });
  const occurrences = new Uint32Array(ids.length);
  const segments: Segment[] = [];
  let first = 0;
  for (const [id, group] of positions) {
    occurrences.set(group, first);
    segments.push([id, first, first + group.length]);
    first += group.length;
  }
  return { segments, occurrences };
}

function tableSize(op: string, shape: Shape): [number, number] {
  const [vocabulary, cols] = shape;
  if (shape.length !== 2 || vocabulary === undefined || cols === undefined) {
    throw new ShapeError(`${op}: the table has shape ${show(shape)}, expected [vocabulary, channels]`);
  }
  return [vocabulary, cols];
}
