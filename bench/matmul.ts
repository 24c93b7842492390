/** Speed of the matrix products, in GFLOPS: cubes, and the products of a training step of the small model. */
import { chooseVariant, matmul, type MatmulLaunchOptions, type MatmulVariant } from "../src/tensor/matmul.ts";
import { scopeAsync } from "../src/tensor/memory.ts";
import { tensor, type Tensor } from "../src/tensor/tensor.ts";
import { medianMilliseconds, type Row } from "./table.ts";

type Layout = "NN" | "NT" | "TN";
const layouts: readonly Layout[] = ["NN", "NT", "TN"];

/** Rows, inner size and columns of the model's products, and the layout it uses them in. */
const products: readonly { name: string; m: number; k: number; n: number; layout: Layout }[] = [
  { name: "decode, 5 sequences", m: 5, k: 192, n: 512, layout: "NT" },
  { name: "decode, 25 sequences", m: 25, k: 192, n: 512, layout: "NT" },
  { name: "projection", m: 1024, k: 192, n: 192, layout: "NT" },
  { name: "MLP up", m: 1024, k: 192, n: 512, layout: "NT" },
  { name: "MLP down", m: 1024, k: 512, n: 192, layout: "NT" },
  { name: "MLP, weight gradient", m: 512, k: 1024, n: 192, layout: "TN" },
  { name: "head", m: 1024, k: 192, n: 2048, layout: "NT" },
  { name: "head, input gradient", m: 1024, k: 2048, n: 192, layout: "NN" },
  { name: "head, weight gradient", m: 2048, k: 1024, n: 192, layout: "TN" },
];

function ramp(shape: readonly [number, number]): Tensor {
  return tensor(Float32Array.from({ length: shape[0] * shape[1] }, (_, i) => ((i * 7) % 13) / 13 - 0.5), shape);
}

async function gigaflops(m: number, k: number, n: number, layout: Layout, variant?: MatmulVariant): Promise<number> {
  return scopeAsync(async () => {
    const a = ramp(layout === "TN" ? [k, m] : [m, k]);
    const b = ramp(layout === "NT" ? [n, k] : [k, n]);
    const options: MatmulLaunchOptions = {
      transposeA: layout === "TN",
      transposeB: layout === "NT",
      ...(variant && { variant }),
    };
    return (2 * m * k * n) / (await medianMilliseconds(() => void matmul(a, b, options))) / 1e6;
  });
}

/** One row per product: its layout, kernel and speed. */
export async function benchMatmul(): Promise<Row[]> {
  const cubes = [256, 512, 1024].flatMap((side) =>
    layouts.map((layout) => ({ name: `cube ${side}`, m: side, k: side, n: side, layout })));
  const rows: Row[] = [];
  for (const { name, m, k, n, layout } of [...cubes, ...products]) {
    const speed = await gigaflops(m, k, n, layout);
    rows.push({ product: name, "m x k x n": `${m} x ${k} x ${n}`, layout, kernel: chooseVariant(m), GFLOPS: speed });
  }
  return rows;
}

/** One row per product of the model, one column per kernel that this adapter can run: the table of `chooseVariant`. */
export async function benchMatmulVariants(): Promise<Row[]> {
  const subgroups: MatmulVariant[] = chooseVariant(9) === "shared64x64" ? [] : ["subgroup8x64", "subgroup32x32"];
  const rows: Row[] = [];
  for (const { name, m, k, n, layout } of products) {
    const row: Record<string, string | number> = { product: name, "m x k x n": `${m} x ${k} x ${n}`, layout };
    for (const variant of [...subgroups, "shared64x64"] as const) {
      row[variant] = await gigaflops(m, k, n, layout, variant);
    }
    rows.push(row);
  }
  return rows;
}
