/** Speed of the matrix products: cubes, the thin products of decoding and of groups, and every kernel's own table. */
import { matmul, type MatmulLaunchOptions } from "../src/tensor/matmul.ts";
import { chooseTilesPerGroup, chooseVariant, runnableVariants, variants } from "../src/tensor/matmul_variants.ts";
import { scopeAsync } from "../src/tensor/memory.ts";
import { tensor, type Tensor } from "../src/tensor/tensor.ts";
import { kernelTimer, takeTurns, timedKernel, type Bench, type Timer } from "./measure.ts";
import type { Row } from "./table.ts";

type Layout = "NN" | "NT" | "TN";
const LAYOUTS: readonly Layout[] = ["NN", "NT", "TN"];

interface Product {
  readonly m: number;
  readonly k: number;
  readonly n: number;
  readonly layout: Layout;
}

/** Cubes, and what a model of width 192 multiplies for 5, 25 and 200 tokens: projections, MLP and head. */
function products(quick: boolean): Product[] {
  const cubes = (quick ? [256, 512] : [256, 512, 1024]).map((side) => ({ m: side, k: side, n: side }));
  const thin = [5, 25, 200].flatMap((m) => (quick ? [512] : [192, 512, 2048]).map((n) => ({ m, k: 192, n })));
  const layouts = quick ? (["NT"] as const) : LAYOUTS;
  return [...cubes, ...thin].flatMap((shape) => layouts.map((layout) => ({ ...shape, layout })));
}

/** The products of a training step of that model on 512 tokens, and of decoding, in the layout they come in. */
const MODEL_PRODUCTS: readonly (Product & { name: string })[] = [
  { name: "decode, 5 rows", m: 5, k: 192, n: 512, layout: "NT" },
  { name: "decode, 16 rows", m: 16, k: 192, n: 512, layout: "NT" },
  { name: "decode, 25 rows", m: 25, k: 192, n: 512, layout: "NT" },
  { name: "group and prompt", m: 45, k: 192, n: 512, layout: "NT" },
  { name: "projection", m: 512, k: 192, n: 192, layout: "NT" },
  { name: "MLP up", m: 512, k: 192, n: 512, layout: "NT" },
  { name: "MLP down", m: 512, k: 512, n: 192, layout: "NT" },
  { name: "MLP, weight gradient", m: 512, k: 512, n: 192, layout: "TN" },
  { name: "head", m: 512, k: 192, n: 2048, layout: "NT" },
  { name: "head, input gradient", m: 512, k: 2048, n: 192, layout: "NN" },
  { name: "head, weight gradient", m: 2048, k: 512, n: 192, layout: "TN" },
];

function ramp(shape: readonly [number, number]): Tensor {
  return tensor(Float32Array.from({ length: shape[0] * shape[1] }, (_, i) => ((i * 7) % 13) / 13 - 0.5), shape);
}

/** Runs `body` with what launches the product, by the kernel that is chosen for it or by another one. */
async function withProduct<T>(
  { m, k, n, layout }: Product,
  body: (launch: (forced?: MatmulLaunchOptions) => void) => Promise<T>,
): Promise<T> {
  return scopeAsync(async () => {
    const a = ramp(layout === "TN" ? [k, m] : [m, k]);
    const b = ramp(layout === "NT" ? [n, k] : [k, n]);
    const transposes = { transposeA: layout === "TN", transposeB: layout === "NT" };
    return body((forced = {}) => void matmul(a, b, { ...transposes, ...forced }));
  });
}

async function timeProduct(bench: Bench, product: Product): Promise<Row> {
  const { m, k, n, layout } = product;
  return withProduct(product, (launch) =>
    timedKernel(bench, launch, { flops: 2 * m * k * n, torch: { op: "matmul", m, k, n, layout } }));
}

const shapeOf = ({ m, k, n }: Product): string => `${m} x ${k} x ${n}`;

/** One row per product: its layout, kernel and speed. */
export async function benchMatmul(bench: Bench): Promise<Row[]> {
  const rows: Row[] = [];
  for (const product of products(bench.quick)) {
    const { layout } = product;
    rows.push({
      "m x k x n": shapeOf(product), layout, kernel: chosenKernel(product), ...(await timeProduct(bench, product)),
    });
  }
  return rows;
}

/** The kernel of a product, "staged" if its workgroups compute several tiles. */
function chosenKernel({ m, n }: Product): string {
  const variant = chooseVariant(m);
  const { tileRows, tileCols } = variants[variant];
  const tiles = chooseTilesPerGroup(variant, Math.ceil(m / tileRows), Math.ceil(n / tileCols));
  return tiles > 1 ? `${variant} staged` : variant;
}

/** Every kernel that this adapter can run on a product, alone and (four tiles to a workgroup) staged. */
function candidates(): Record<string, MatmulLaunchOptions> {
  return Object.fromEntries(runnableVariants().flatMap((variant): [string, MatmulLaunchOptions][] => [
    [variant, { variant, tilesPerGroup: 1 }],
    [`${variant} staged`, { variant, tilesPerGroup: 4 }],
  ]).filter(([, { variant, tilesPerGroup }]) => tilesPerGroup === 1 || variants[variant!].stages));
}

/** GFLOPS by kernel, measured in turn, and the fastest: what `chooseVariant` and `chooseTilesPerGroup` go by. */
export async function benchMatmulVariants(bench: Bench): Promise<Row[]> {
  const kernels = Object.entries(candidates());
  const rows: Row[] = [];
  for (const product of bench.quick ? MODEL_PRODUCTS.slice(0, 5) : MODEL_PRODUCTS) {
    const { name, m, k, n, layout } = product;
    const speeds = await withProduct(product, async (launch) => {
      const timers: Timer[] = [];
      for (const [, forced] of kernels) timers.push(await kernelTimer(() => launch(forced)));
      return (await takeTurns(timers, 3 * bench.runs)).map(({ best }) => (2 * m * k * n) / best / 1e6);
    });
    rows.push({
      product: name, "m x k x n": shapeOf(product), layout,
      ...Object.fromEntries(kernels.map(([kernel], i) => [kernel, speeds[i]!])),
      fastest: kernels[speeds.indexOf(Math.max(...speeds))]![0], chosen: chosenKernel(product),
    });
  }
  return rows;
}
