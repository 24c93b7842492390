/**
 * The engine alone, without a language model: a network of two layers learns the exclusive or, -1 for no and 1 for yes.
 *
 *   npx tsx examples/autograd.ts
 *
 * On the software driver it prints (another adapter may round other digits):
 *
 *   step   0: loss 2.038104, answers  0.00 -1.37  0.12 -0.14
 *   step  20: loss 0.235227, answers -0.89  0.64  0.38 -0.36
 *   step  40: loss 0.022224, answers -1.01  1.11  1.20 -1.19
 *   step  60: loss 0.002938, answers -0.99  0.97  0.93 -0.93
 *   step  80: loss 0.000047, answers -1.00  1.00  1.01 -1.01
 *   step 100: loss 0.000002, answers -1.00  1.00  1.00 -1.00
 */
import { adamw } from "../src/autograd/adamw.ts";
import { backward, zeroGrad } from "../src/autograd/backward.ts";
import * as ops from "../src/autograd/ops.ts";
import { constant, parameter } from "../src/autograd/variable.ts";
import { runMain } from "../src/cli.ts";
import { seededNormal } from "../src/random.ts";
import { openGpu } from "../src/tensor/device.ts";
import { scopeAsync } from "../src/tensor/memory.ts";
import { read, tensor } from "../src/tensor/tensor.ts";

async function main(): Promise<void> {
  await openGpu();
  const inputs = constant(tensor([0, 0, 0, 1, 1, 0, 1, 1], [4, 2]));
  const targets = constant(tensor([-1, 1, 1, -1], [4, 1]));

  const random = seededNormal(1);
  const hidden = parameter(tensor(Array.from({ length: 16 }, random), [2, 8]));
  const hiddenBias = parameter(tensor(new Float32Array(8)));
  const output = parameter(tensor(Array.from({ length: 8 }, random), [8, 1]));
  const parameters = [hidden, hiddenBias, output];
  const optimizer = adamw(parameters);

  for (let step = 0; step <= 100; step++) {
    // What is computed in a scope goes back to the pool when it ends. Parameters and moments are older than it.
    await scopeAsync(async () => {
      const answers = ops.matmul(ops.tanh(ops.matmul(inputs, hidden, { bias: hiddenBias })), output); // [4, 1]
      const errors = ops.sub(answers, targets);
      const loss = ops.mean(ops.mul(errors, errors));
      if (step % 20 === 0) { // a readback waits for the GPU; everything else here only records commands
        const [value] = await read(loss.value);
        const texts = Array.from(await read(answers.value), (answer) => answer.toFixed(2).padStart(5));
        console.log(`step ${String(step).padStart(3)}: loss ${value!.toFixed(6)}, answers ${texts.join(" ")}`);
      }
      zeroGrad(parameters);
      backward(loss); // sets `grad` of each parameter
      optimizer.step(0.05);
    });
  }
}

await runMain(main);
