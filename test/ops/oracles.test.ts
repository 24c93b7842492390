/** Every operation against PyTorch: all cases of the fixture, forward and gradient of every floating input. */
import { describe, expect, test } from "vitest";
import { backward } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import { constant, parameter, type Variable } from "../../src/autograd/variable.ts";
import { memoryStats, scopeAsync } from "../../src/tensor/memory.ts";
import { dispose, keep, readAll } from "../../src/tensor/tensor.ts";
import { toGpu } from "../support/gpu.ts";
import { gpuOps, notOffered, otherConvention, releaseTables, runOnGpu } from "../support/gpu_op_table.ts";
import { expectClose } from "../support/gradcheck.ts";
import { loadOpCases, type OpCase } from "../support/oracles.ts";

const cases = loadOpCases();
const offered = cases.filter(({ op, name }) => !(op in notOffered) && !(name in otherConvention));

test("the table and the exceptions cover every operation of the fixture, exactly", () => {
  expect(cases).toHaveLength(247);
  const known = [...Object.keys(gpuOps), ...Object.keys(notOffered)];
  expect(known.sort()).toEqual([...new Set(cases.map(({ op }) => op))].sort());
  const names = new Set(cases.map(({ name }) => name));
  for (const name of Object.keys(otherConvention)) expect(names).toContain(name);
});

/** sum over outputs of sum(output * cotangent): the number whose gradient the fixture holds */
function contract(outputs: readonly Variable[], { cotangents }: OpCase): Variable {
  return outputs
    .map((y, i) => ops.sum(ops.mul(y, constant(toGpu(cotangents[i]!)))))
    .reduce((total, term) => ops.add(total, term));
}

async function runCase(oracle: OpCase): Promise<void> {
  const floating = Object.entries(oracle.inputs).filter(([, x]) => !x.integer);
  const variables = Object.fromEntries(floating.map(([name, x]) => [name, parameter(keep(toGpu(x)))]));
  const results = await scopeAsync(async () => {
    const outputs = runOnGpu(oracle, variables);
    expect(outputs.map(({ value }) => value.shape)).toEqual(oracle.outputs.map(({ shape }) => shape));
    backward(contract(outputs, oracle));
    const gradients = floating.map(([name]) => variables[name]!.grad!);
    return readAll([...outputs.map(({ value }) => value), ...gradients]);
  });
  for (const { value, grad } of Object.values(variables)) [value, grad!].forEach(dispose);
  releaseTables();
  oracle.outputs.forEach(({ data }, i) => {
    // Where long sums cancel, the error is that of the terms and not of the small result.
    const scale = data.reduce((largest, value) => Math.max(largest, Math.abs(value)), 1);
    expectClose(`${oracle.name} output ${i}`, results.shift()!, data, { rtol: 5e-6, atol: 2e-6 * scale });
  });
  for (const [name] of floating) {
    const expected = oracle.grads[name]!.data;
    expectClose(`${oracle.name} gradient of ${name}`, results.shift()!, expected, { rtol: 2e-5, atol: 1e-5 });
  }
}

describe.each([...new Set(offered.map(({ op }) => op))])("%s equals PyTorch", (op) => {
  test.each(offered.filter((oracle) => oracle.op === op))("$name", runCase);
});

test("the cases left nothing behind", () => {
  expect(memoryStats().liveBuffers).toBe(0);
});
