/**
 * Launches attention.wgsl: fused causal attention with grouped queries, forward and backward (FlashAttention, Dao
 * 2022).
 *
 * Two files complete the shader for two kinds of adapters; they differ in how a row reaches all lanes. The head size is
 * a constant of the pipeline, because it sizes the rows that lanes keep in registers.
 */
import { gpu } from "./device.ts";
import { kernel, launch, type Kernel } from "./kernel.ts";
import { concat, slice, sliceBackward } from "./layout.ts";
import { scope } from "./memory.ts";
import { expectShape } from "./rows.ts";
import { ShapeError, sameShape, show } from "./shape.ts";
import { empty, reshape, type Tensor } from "./tensor.ts";

export interface AttentionOptions {
  /** Factor on q·k. Default 1 / sqrt(D). */
  readonly scale?: number;
  /** u32 [B, Tk], 1 = real token, 0 = padding that nobody sees. Default: all real. */
  readonly keyMask?: Tensor;
  /**
   * u32 [B, Tk]: key j is seen by positions before keyEnd[b, j] only; 0 = padding. Several sequences with common
   * beginnings are thus one row: their tokens are a tree in depth-first order, and a key ends behind its last
   * descendant. Ends must be nested so: for j < j' < keyEnd[j], keyEnd[j'] <= keyEnd[j]. Not together with keyMask.
   */
  readonly keyEnd?: Tensor;
  /** u32 [B], position of each row's first query among the keys: what its KV cache held before. Default 0. */
  readonly queryStart?: Tensor;
  /** k and v are [B, Hkv, Tk, D]: the keys of a head side by side, as a KV cache has them. Default false. */
  readonly headsFirst?: boolean;
  /** How rows travel between lanes; chosen by adapter unless given. "subgroup" needs subgroups of one known size. */
  readonly sharing?: Sharing;
}

export type Sharing = "subgroup" | "workgroup";

const WORKGROUP_LANES = 32; // of "workgroup"; with "subgroup" it is the adapter's subgroup size
const ONE_QUERY_LANES = 64; // of "workgroup": as many as the largest head has vectors
/**
 * Query heads to a key-value head up to which `forwardOneQuery` is used with "subgroup": a lane keeps a part of each
 * one's row.
 */
const MAX_GROUP_HEADS = 8;
/** Values of the shader's `keyRule`: what keyEnd holds. */
const KEY_RULES = { nothing: 0, mask: 1, ends: 2 } as const;
const NEVER = 0xffffffff;
const MAX_HEAD_SIZE = 256; // a lane keeps four rows in registers

const PARAMS = [
  "batch", "queries", "keys", "kvHeads", "groupHeads", "keyStride", "headStride", "keyRule", "firstStart", "scale",
] as const;
// At most the 8 buffers that every adapter binds.
const INPUTS = ["q", "k", "v", "visibility"] as const;
const FORWARD = [...INPUTS, "y", "logSumExp"] as const;
const ROW_STATISTICS = ["savedY", "savedLogSumExp", "dy", "rowStats"] as const;
const BACKWARD_QUERY = [...INPUTS, "savedRowStats", "dy", "dq"] as const;
const BACKWARD_KEY = [...INPUTS, "savedRowStats", "dy", "dk", "dv"] as const;

type Params = (typeof PARAMS)[number];

interface AttentionKernels {
  readonly forward: Kernel<(typeof FORWARD)[number], Params>;
  readonly forwardOneQuery: Kernel<(typeof FORWARD)[number], Params>;
  readonly rowStatistics: Kernel<(typeof ROW_STATISTICS)[number], Params>;
  readonly backwardQuery: Kernel<(typeof BACKWARD_QUERY)[number], Params>;
  readonly backwardKey: Kernel<(typeof BACKWARD_KEY)[number], Params>;
}

function declare(shader: string): AttentionKernels {
  return {
    forward: kernel({ shader, entry: "forward", buffers: FORWARD, params: PARAMS }),
    forwardOneQuery: kernel({ shader, entry: "forwardOneQuery", buffers: FORWARD, params: PARAMS }),
    rowStatistics: kernel({ shader, entry: "rowStatistics", buffers: ROW_STATISTICS, params: PARAMS }),
    backwardQuery: kernel({ shader, entry: "backwardQuery", buffers: BACKWARD_QUERY, params: PARAMS }),
    backwardKey: kernel({ shader, entry: "backwardKey", buffers: BACKWARD_KEY, params: PARAMS }),
  };
}

const kernels: Readonly<Record<Sharing, AttentionKernels>> = {
  subgroup: declare("attention_subgroup"),
  workgroup: declare("attention_workgroup"),
};

/**
 * y = softmax(scale q kᵀ) v over the keys each query sees: query i of row b, at position queryStart[b] + i, sees key j
 * iff j <= position, keyMask[b, j] != 0 and position < keyEnd[b, j]. q [B, Tq, H, D], k and v [B, Tk, Hkv, D] with H a
 * multiple of Hkv (query head h reads key-value head floor(h Hkv / H)) -> y [B, Tq, H, D] and, for backward, logSumExp
 * [B, H, Tq] of the scaled scores. A query that sees no key gives 0. k and v may be caches longer than what is filled:
 * what no query sees is not read. Equals torch.nn.functional.scaled_dot_product_attention with `is_causal` and
 * `enable_gqa`.
 * @throws ShapeError when the shapes do not fit or D is above 256.
 */
export function attention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: AttentionOptions = {},
): { y: Tensor; logSumExp: Tensor } {
  return scope(() => {
    const call = prepare("attention", q, k, v, options);
    const y = empty(call.inputs.q.shape);
    const logSumExp = empty(call.statsShape);
    const buffers = { ...call.inputs, y, logSumExp };
    const { batch, queries, kvHeads, groupHeads } = call.params;
    const { forward, forwardOneQuery } = call.kernels;
    if (queries === 1 && call.sharing === "workgroup") {
      const constants = { ...call.constants, WORKGROUP: ONE_QUERY_LANES };
      launch(forwardOneQuery, buffers, call.params, batch * kvHeads * groupHeads, constants);
    } else if (queries === 1 && groupHeads <= MAX_GROUP_HEADS) {
      const constants = { ...call.constants, GROUP_HEADS: groupHeads };
      launch(forwardOneQuery, buffers, call.params, batch * kvHeads, constants);
    } else {
      launch(forward, buffers, call.params, call.queryGroups, call.constants);
    }
    return { y: unpad(y, q), logSumExp };
  });
}

/** Inputs and results of `attention`, as its backward pass needs them. */
export interface SavedAttention {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly y: Tensor;
  readonly logSumExp: Tensor;
}

/**
 * Gradients of `attention` from dy [B, Tq, H, D], with the options of the forward pass. The probabilities are computed
 * again from logSumExp. Keys that no query sees get zeros.
 * @throws ShapeError when the shapes do not fit.
 */
export function attentionBackward(
  saved: SavedAttention,
  dy: Tensor,
  options: AttentionOptions = {},
): { dq: Tensor; dk: Tensor; dv: Tensor } {
  const { q, k, v, y, logSumExp } = saved;
  return scope(() => {
    const call = prepare("attentionBackward", q, k, v, options);
    expectShape("attentionBackward", "dy", dy, q.shape);
    expectShape("attentionBackward", "y", y, q.shape);
    expectShape("attentionBackward", "logSumExp", logSumExp, call.statsShape);
    const [dq, dk, dv] = [empty(call.inputs.q.shape), empty(call.inputs.k.shape), empty(call.inputs.k.shape)];
    const { rowStatistics, backwardQuery, backwardKey } = call.kernels;
    const [paddedDy, rowStats] = [pad(dy), empty([...call.statsShape, 2])];
    const rows = { savedY: pad(y), savedLogSumExp: logSumExp, dy: paddedDy, rowStats };
    launch(rowStatistics, rows, call.params, call.rowGroups, call.constants);
    const buffers = { ...call.inputs, savedRowStats: rowStats, dy: paddedDy };
    launch(backwardQuery, { ...buffers, dq }, call.params, call.queryGroups, call.constants);
    launch(backwardKey, { ...buffers, dk, dv }, call.params, call.keyGroups, call.constants);
    return { dq: unpad(dq, q), dk: unpad(dk, k), dv: unpad(dv, v) };
  });
}

/** What forward and backward launches share. */
function prepare(op: string, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) {
  const { keyMask, keyEnd, queryStart, scale, headsFirst = false, sharing } = options;
  const [batch = 0, queries = 0, heads = 0, headSize = 0] = q.shape;
  const [keys = 0, kvHeads = 0] = headsFirst ? [k.shape[2], k.shape[1]] : k.shape.slice(1);
  const keyShape = show(headsFirst ? [batch, kvHeads, keys, headSize] : [batch, keys, kvHeads, headSize]);
  if (q.shape.length !== 4 || show(k.shape) !== keyShape || show(v.shape) !== keyShape || heads % kvHeads !== 0) {
    throw new ShapeError(
      `${op}: q ${show(q.shape)}, k ${show(k.shape)}, v ${show(v.shape)} do not fit; ` +
        `expected q [B, Tq, H, D], k and v [B, ${headsFirst ? "Hkv, Tk" : "Tk, Hkv"}, D] with H a multiple of Hkv`,
    );
  }
  if (headSize < 1 || headSize > MAX_HEAD_SIZE) {
    throw new ShapeError(`${op}: head size ${headSize} in q ${show(q.shape)}; expected 1 to ${MAX_HEAD_SIZE}`);
  }
  expectIds(op, "keyMask", keyMask, [batch, keys]);
  expectIds(op, "keyEnd", keyEnd, [batch, keys]);
  expectIds(op, "queryStart", queryStart, [batch]);
  if (keyMask && keyEnd) {
    throw new ShapeError(`${op}: keyMask and keyEnd exclude each other. Fix: give padding the keyEnd 0`);
  }
  // On a CPU a load from workgroup memory costs as much as any other, and a barrier much more.
  const chosen = sharing ?? (gpu().software && gpu().subgroupSize > 0 ? "subgroup" : "workgroup");
  const lanes = chosen === "subgroup" ? gpu().subgroupSize : WORKGROUP_LANES;
  const groupHeads = heads / kvHeads;
  const groupsFor = (rows: number): number => batch * kvHeads * Math.ceil(rows / lanes);
  const padded = pad(q);
  const vectors = padded.shape[3]! / 4;
  const ends = keyEnd ?? keyMask;
  const given = [ends, queryStart].filter((x) => x !== undefined).map((x) => reshape(x, [-1]));
  // Without any, a buffer must still be bound; the parameters keep the shader from reading it.
  const unread: Tensor = { ...padded, dtype: "u32" };
  return {
    sharing: chosen,
    kernels: kernels[chosen],
    inputs: { q: padded, k: pad(k), v: pad(v), visibility: given.length > 1 ? concat(given, 0) : (given[0] ?? unread) },
    params: {
      batch, queries, keys, kvHeads, groupHeads,
      keyStride: headsFirst ? vectors : kvHeads * vectors,
      headStride: headsFirst ? keys * vectors : vectors,
      keyRule: keyEnd ? KEY_RULES.ends : keyMask ? KEY_RULES.mask : KEY_RULES.nothing,
      firstStart: queryStart ? (ends ? batch * keys : 0) : NEVER,
      scale: scale ?? 1 / Math.sqrt(headSize),
    },
    constants: { HEAD_SIZE: padded.shape[3]!, WORKGROUP: lanes },
    queryGroups: groupsFor(queries * groupHeads),
    keyGroups: groupsFor(keys),
    rowGroups: Math.ceil((batch * queries * heads) / lanes),
    statsShape: [batch, heads, queries],
  };
}

function expectIds(op: string, name: string, x: Tensor | undefined, shape: readonly number[]): void {
  if (x && (x.dtype !== "u32" || !sameShape(x.shape, shape))) {
    throw new ShapeError(`${op}: ${name} is ${x.dtype} ${show(x.shape)}; expected u32 ${show(shape)}`);
  }
}

/** The kernels read vec4f: other head sizes (rare) are filled up with zeros, which change no score. */
function pad(x: Tensor): Tensor {
  const headSize = x.shape[3]!;
  const wanted = Math.ceil(headSize / 4) * 4;
  return wanted === headSize ? x : sliceBackward(x, x.shape.with(3, wanted), 3, 0);
}

/** Takes the columns away that `pad` added to `like`. */
function unpad(x: Tensor, like: Tensor): Tensor {
  const headSize = like.shape[3]!;
  return x.shape[3] === headSize ? x : slice(x, 3, 0, headSize);
}
