/**
 * Compiles what the reference experiment runs on, by running a little of it: the driver keeps compiled shaders, and the
 * experiment's first run then need not wait for them. `setup.mjs` starts the parts side by side, because within one
 * process the software driver compiles one shader at a time.
 *
 *   npx tsx scripts/warm_shaders.ts rollouts
 *   npx tsx scripts/warm_shaders.ts gradients
 */
import { adamw } from "../src/autograd/adamw.ts";
import { command, runMain, UsageError } from "../src/cli.ts";
import { parseConfig } from "../src/grpo/config.ts";
import type { Experience } from "../src/grpo/rollout.ts";
import { openTask } from "../src/grpo/task.ts";
import { gradientStep } from "../src/grpo/update.ts";
import { loadChatModel } from "../src/model/chat_model.ts";
import { sampleCompletions } from "../src/model/sampler.ts";
import { openGpu } from "../src/tensor/device.ts";

/**
 * Tokens of a completion, from sentences down to bare digits: products of other numbers of rows take other kernels.
 * Most of the work is a first gradient step, which one part does while the other draws rollouts; the rest is shared.
 */
const COMPLETION_LENGTHS = { rollouts: [8, 6, 5, 4], gradients: [12, 10, 3, 2, 1] };

async function main(): Promise<void> {
  const program = command("warm_shaders", "Compiles the shaders of the reference experiment.").argument("<part>");
  const [part] = program.parse().args;
  if (part !== "rollouts" && part !== "gradients") {
    throw new UsageError(`unknown part "${part}". Fix: rollouts or gradients`);
  }
  const config = parseConfig(["node", "warm_shaders"]);
  const task = await openTask(config.environment, { timeoutSeconds: config.rewardTimeout });
  const [prompt] = await task.prompts(0, 1, config.seed);
  await openGpu();
  const chat = loadChatModel(config.model);
  const promptIds = chat.encodePrompt(prompt!.messages);
  if (part === "rollouts") {
    const { maxRolloutTokens: maxNewTokens, temperature, seed, rolloutCount } = config;
    const endIds = chat.tokenizer.eosIds;
    await sampleCompletions(chat.model, [promptIds], rolloutCount, { maxNewTokens, temperature, seed, endIds });
  }
  const optimizer = adamw([...chat.model.parameters.values()], { maximize: true });
  for (const length of COMPLETION_LENGTHS[part]) {
    const completions = Array.from({ length: config.groupSize }, (_, row): Experience => ({
      prompt: prompt!, promptIds,
      completionIds: Array.from({ length }, (__, t) => 10 * row + t), // different ones: they share no prefix
      logProbs: new Array<number>(length).fill(-1),
      ended: true, text: "", rewards: [], reward: row, trainStep: 0, group: "warm",
    }));
    await gradientStep(chat.model, optimizer, completions, completions.map((_, row) => row - 2), 0, config);
  }
}

await runMain(main);
