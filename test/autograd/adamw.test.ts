/** AdamW against the float64 reference over many steps, and what it must do with bad, missing and large gradients. */
import { expect, test } from "vitest";
import { adamw, type AdamW, type AdamWOptions } from "../../src/autograd/adamw.ts";
import { backward, zeroGrad } from "../../src/autograd/backward.ts";
import * as ops from "../../src/autograd/ops.ts";
import { linearSchedule } from "../../src/autograd/schedule.ts";
import { parameter, type Variable } from "../../src/autograd/variable.ts";
import { fillInto } from "../../src/tensor/elementwise.ts";
import { memoryStats, scopeAsync } from "../../src/tensor/memory.ts";
import { observe } from "../../src/tensor/recorder.ts";
import { dispose, disposeAll as disposeTensors, emptyNeighbours, keep, read, write } from "../../src/tensor/tensor.ts";
import { toGpu } from "../support/gpu.ts";
import { expectClose, random } from "../support/gradcheck.ts";
import { array64, map, type Array64 } from "../support/reference.ts";
import * as nn from "../support/reference_nn.ts";

// More than one chunk of 4096 elements, a chunk and one element, less than a workgroup, a single number.
const SHAPES = [[97, 131], [4097], [3], [1]];
const STEPS = 20;

const parametersOf = (values: readonly Array64[]): Variable[] => values.map((value) => parameter(keep(toGpu(value))));

/** Gives each parameter a gradient, in a tensor that is kept and overwritten; null takes it away. */
function setGradients(parameters: readonly Variable[], gradients: readonly (Array64 | null)[]): void {
  parameters.forEach((variable, i) => {
    const gradient = gradients[i]!;
    if (!gradient) {
      if (variable.grad) dispose(variable.grad);
      variable.grad = null;
    } else if (variable.grad) write(variable.grad, Float32Array.from(gradient.data));
    else variable.grad = keep(toGpu(gradient));
  });
}

function disposeAll(parameters: readonly Variable[]): void {
  for (const { value, grad } of parameters) {
    dispose(value);
    if (grad) dispose(grad);
  }
}

/** STEPS steps on the GPU and in float64 from the same random values and gradients; compares all parameters. */
async function compare(
  options: AdamWOptions,
  gradientSize: number,
  skipped: (i: number, step: number) => boolean,
): Promise<void> {
  const numbers = random(1);
  const initial = SHAPES.map((shape) => numbers.uniform(shape));
  const parameters = parametersOf(initial);
  const optimizer = adamw(parameters, options);
  const states = initial.map((value) => ({
    parameter: value,
    firstMoment: map(value, () => 0),
    secondMoment: map(value, () => 0),
  }));
  const updates = SHAPES.map(() => 0);
  for (let step = 0; step < STEPS; step++) {
    const learningRate = 0.02 * linearSchedule(step, { warmupSteps: 5, totalSteps: STEPS });
    const gradients = SHAPES.map((shape, i) =>
      skipped(i, step) ? null : numbers.uniform(shape, -gradientSize, gradientSize));
    const present = gradients.filter((gradient) => gradient !== null);
    setGradients(parameters, gradients);
    const { gradNorm } = optimizer.step(learningRate);
    const norm = Math.sqrt(present.reduce((sum, { data }) => sum + data.reduce((part, g) => part + g * g, 0), 0));
    expectClose(`norm at step ${step}`, await read(gradNorm), [norm], { rtol: 1e-5, atol: 0 });

    const clip = options.maxGradNorm === undefined ? 1 : nn.clipFactor(present, options.maxGradNorm);
    gradients.forEach((gradient, i) => {
      if (!gradient) return;
      const sign = options.maximize ? -1 : 1;
      const settings = { ...options, learningRate, step: ++updates[i]! };
      states[i] = nn.adamwStep(states[i]!, map(gradient, (g) => sign * clip * g), settings);
    });
  }
  for (const [i, { value }] of parameters.entries()) {
    const own = optimizer.state[i]!;
    expect(own.step).toBe(updates[i]);
    const largestMoment = gradientSize * (options.maxGradNorm === undefined ? 1 : 0.1);
    expectClose(`parameter ${i}`, await read(value), states[i]!.parameter.data, { rtol: 2e-5, atol: 2e-6 });
    expectClose(`first moment ${i}`, await read(own.firstMoment), states[i]!.firstMoment.data, {
      rtol: 1e-5, atol: 1e-6 * largestMoment,
    });
    expectClose(`second moment ${i}`, await read(own.secondMoment), states[i]!.secondMoment.data, {
      rtol: 3e-5, atol: 0,
    });
  }
  optimizer.dispose();
  disposeAll(parameters);
}

const never = (): boolean => false;

test("20 steps with the defaults, warm-up and decay", () => compare({}, 0.1, never));
test("clipping: the norm is far above the bound", () => compare({ maxGradNorm: 1 }, 3, never));
test("clipping: the norm is below the bound", () => compare({ maxGradNorm: 1e6 }, 0.1, never));
test("maximise", () => compare({ maximize: true, maxGradNorm: 1 }, 1, never));
test("weight decay, other betas and eps", () =>
  compare({ weightDecay: 0.3, beta1: 0.8, beta2: 0.95, eps: 1e-3 }, 0.1, never));
test("a parameter without gradient is left out, and its step does not count", () =>
  compare({ maxGradNorm: 1 }, 1, (i, step) => (i + step) % 3 === 0));

test("weight decay does not pass through the moments: it works on a zero gradient", async () => {
  const parameters = parametersOf([array64([2], [1, -2])]);
  const optimizer = adamw(parameters, { weightDecay: 0.5 });
  setGradients(parameters, [array64([2], [0, 0])]);
  optimizer.step(0.1);
  expectClose("parameter", await read(parameters[0]!.value), [0.95, -1.9], { rtol: 1e-6, atol: 0 });
  optimizer.dispose();
  disposeAll(parameters);
});

test.each([NaN, Infinity, -Infinity, 1e25])("a gradient of %d changes no parameter and no moment", async (bad) => {
  const numbers = random(2);
  const parameters = parametersOf(SHAPES.map((shape) => numbers.uniform(shape)));
  const optimizer = adamw(parameters, { maxGradNorm: 1 });
  setGradients(parameters, SHAPES.map((shape) => numbers.uniform(shape)));
  optimizer.step(0.01);
  const snapshot = async (): Promise<number[]> => {
    const values = await Promise.all(parameters.map(({ value }) => read(value)));
    const moments = (await optimizer.exportState()).map(({ firstMoment, secondMoment }) => [firstMoment, secondMoment]);
    return [values, moments].flat(2).flatMap((array) => [...array]);
  };
  const before = await snapshot();
  const gradients = SHAPES.map((shape) => numbers.uniform(shape));
  gradients[1]!.data[4096] = bad; // alone in its chunk, in one parameter of four
  setGradients(parameters, gradients);
  const { gradNorm } = optimizer.step(0.01);
  expect(Number.isFinite((await read(gradNorm))[0])).toBe(false);
  expectClose("parameters and moments", await snapshot(), before, { rtol: 0, atol: 0 });

  gradients[1]!.data[4096] = 1;
  setGradients(parameters, gradients);
  optimizer.step(0.01); // and training goes on
  const after = await snapshot();
  expect(after.every((value, i) => Number.isFinite(value) && value !== before[i])).toBe(true);
  optimizer.dispose();
  disposeAll(parameters);
});

test("saved and restored state goes on bit for bit; two runs agree bit for bit", async () => {
  const numbers = random(3);
  const initial = SHAPES.map((shape) => numbers.uniform(shape));
  const gradients = Array.from({ length: 6 }, () => SHAPES.map((shape) => numbers.uniform(shape)));
  const run = async (restartAt: number | null): Promise<Float32Array[]> => {
    const parameters = parametersOf(initial);
    let optimizer = adamw(parameters, { maxGradNorm: 1 });
    for (const [step, gradient] of gradients.entries()) {
      if (step === restartAt) {
        const saved = await optimizer.exportState();
        optimizer.dispose();
        optimizer = adamw(parameters, { maxGradNorm: 1 });
        optimizer.importState(saved);
      }
      setGradients(parameters, gradient);
      optimizer.step(0.01);
    }
    const result = await Promise.all(parameters.map(({ value }) => read(value)));
    optimizer.dispose();
    disposeAll(parameters);
    return result;
  };
  const straight = await run(null);
  expect(await run(null)).toEqual(straight);
  expect(await run(3)).toEqual(straight);
});

test("a state that does not fit is refused", async () => {
  const parameters = parametersOf([array64([2], [1, 2])]);
  const optimizer = adamw(parameters);
  const [state] = await optimizer.exportState();
  expect(() => optimizer.importState([])).toThrow("adamw: 0 saved states for 1 parameters");
  expect(() => optimizer.importState([{ ...state!, firstMoment: new Float32Array(3) }])).toThrow(
    "adamw: saved moments 0 have 3 and 2 values, the parameter has shape [2]",
  );
  optimizer.dispose();
  disposeAll(parameters);
});

test("steps allocate nothing, and dispose frees everything", async () => {
  const before = memoryStats().liveBytes;
  const parameters = parametersOf(SHAPES.map((shape) => random(4).uniform(shape)));
  const optimizer = adamw(parameters, { maxGradNorm: 1 });
  setGradients(parameters, SHAPES.map((shape) => random(5).uniform(shape)));
  const ready = memoryStats().liveBytes;
  for (let step = 0; step < 5; step++) optimizer.step(0.01);
  await read(parameters[0]!.value);
  expect(memoryStats().liveBytes).toBe(ready);
  optimizer.dispose();
  disposeAll(parameters);
  expect(memoryStats().liveBytes).toBe(before);
});

test("neighbours are updated by one launch, to the same bits as each alone; one without a gradient parts them", async () => {
  const shapes = [[97, 131], [3], [4097], [1], [65]];
  const numbers = random(3);
  const [initial, gradients] = [0, 1].map(() => shapes.map((shape) => numbers.uniform(shape))) as [Array64[], Array64[]];
  const run = async (values: readonly Variable[], missing: number | null): Promise<{ bits: unknown[]; launches: number }> => {
    values.forEach(({ value }, i) => write(value, Float32Array.from(initial[i]!.data)));
    const optimizer = adamw(values, { weightDecay: 0.1 });
    let launches = 0;
    for (let step = 0; step < 3; step++) {
      values.forEach((own, i) => {
        own.grad = i === missing && step === 1 ? null : own.gradPlace!;
        if (own.grad) write(own.grad, Float32Array.from(gradients[i]!.data));
      });
      launches = 0;
      const stop = observe({ dispatch: () => launches++ });
      optimizer.step(0.01);
      stop();
    }
    const bits = [...(await optimizer.exportState())];
    const after = await Promise.all(values.map(({ value }) => read(value)));
    optimizer.dispose();
    expect(values.map(({ grad, gradPlace }) => [grad, gradPlace])).toEqual(shapes.map(() => [null, null]));
    return { bits: [...bits, ...after], launches };
  };
  const before = memoryStats().liveBuffers;
  const neighbours = emptyNeighbours(shapes).map((value) => parameter(keep(value)));
  const apart = parametersOf(initial);
  for (const [missing, joined, single] of [[null, 3, 11], [2, 7, 11]] as const) {
    const [together, alone] = [await run(neighbours, missing), await run(apart, missing)];
    expect(together.bits).toEqual(alone.bits);
    expect([together.launches, alone.launches]).toEqual([joined, single]);
  }
  disposeTensors(neighbours.map(({ value }) => value));
  disposeAll(apart);
  expect(memoryStats().liveBuffers).toBe(before);
});

test.each(["first", "second"])("two optimisers share the places of gradients; the %s is disposed of before the other", async (sooner) => {
  const before = memoryStats().liveBuffers;
  const parameters = emptyNeighbours([[3], [65]]).map((value) => parameter(keep(value)));
  await scopeAsync(async () => {
    const train = (optimizer: AdamW): void => {
      backward(parameters.map((own) => ops.sum(own)).reduce((sum, part) => ops.add(sum, part)));
      optimizer.step(0.5);
    };
    const first = adamw(parameters, { weightDecay: 0 });
    for (const { value } of parameters) fillInto(value, 2);
    train(first); // leaves gradients in their places
    const second = adamw(parameters, { weightDecay: 0 });
    zeroGrad(parameters);
    train(second);
    const [gone, left] = sooner === "first" ? [first, second] : [second, first];
    gone.dispose();
    zeroGrad(parameters);
    train(left);
    // Each step takes 0.5 away: all gradients are 1.
    for (const { value } of parameters) for (const x of await read(value)) expect(x).toBeCloseTo(0.5, 5);
    zeroGrad(parameters);
    left.dispose();
  });
  disposeTensors(parameters.map(({ value }) => value));
  expect(memoryStats().liveBuffers).toBe(before);
});
