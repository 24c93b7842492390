/**
 * Pretraining: text in, tokenizer trained, model trained with the next-token loss, a chat model out.
 *
 *   npx tsx src/model/pretrain.ts --corpora DIR --out runs/pretrain          (npm run pretrain -- ...)
 *   npx tsx src/model/pretrain.ts --resume runs/pretrain                     goes on, bit for bit, where it stopped
 *   npx tsx src/model/pretrain.ts --init runs/pretrain --out runs/second     a second stage, from the first's weights
 *
 * Loss: mean of -log p(token t+1 | tokens <= t) over all tokens of a batch, users' turns included.
 * AdamW with linear warm-up and a cosine decay to 0, global-norm clipping.
 *
 * In --out: the tokenizer, rows.bin (the packed ids), sources.json (where the text of all stages came from), init.json
 * (the settings of the stages before), metrics.jsonl, checkpoint/ (to resume) and in the end model/ with its model card.
 */
import { appendFileSync, existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { adamw, type AdamW } from "../autograd/adamw.ts";
import { backward, zeroGrad } from "../autograd/backward.ts";
import { cosineSchedule } from "../autograd/schedule.ts";
import { command, integer, NumericsError, number, requireNewDirectory, runMain, UsageError } from "../cli.ts";
import { lockFolder } from "../folder_lock.ts";
import { seededNormal } from "../random.ts";
import { describeGpu, openGpu } from "../tensor/device.ts";
import { scopeAsync } from "../tensor/memory.ts";
import { read, readAll } from "../tensor/tensor.ts";
import { loadChatModel } from "./chat_model.ts";
import { copyTextFiles, loadGpt, saveGpt } from "./checkpoint.ts";
import { FAMILIES, type GptConfig } from "./config.ts";
import { createGpt, disposeGpt, frozen, type Gpt } from "./gpt.ts";
import { modelCard, type StageSettings } from "./model_card.ts";
import { parameterCount } from "./parameters.ts";
import { batchAt, collectDialogues, packRows, writeTokenizer } from "./pretrain_data.ts";
import { mergeSources, readEarlierStage, readSources, readStages, type EarlierStage } from "./pretrain_init.ts";
import { nextTokenLoss } from "./pretrain_loss.ts";
import { loadTrainingState, saveTrainingState } from "./training_state.ts";

/** Everything that determines the result; saved with each checkpoint. */
export interface PretrainSettings {
  readonly corpora: string | null;
  /** The folder of the finished run whose model this one starts from; null: random weights. */
  readonly init: string | null;
  readonly generated: number;
  readonly corporaRatio: number;
  readonly vocab: number;
  readonly hidden: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headSize: number;
  readonly mlp: number;
  readonly rowLength: number;
  readonly batch: number;
  readonly steps: number;
  readonly warmup: number;
  readonly learningRate: number;
  readonly weightDecay: number;
  readonly seed: number;
}

interface Flags extends Omit<PretrainSettings, "corpora" | "init"> {
  readonly corpora?: string;
  readonly init?: string;
  readonly out?: string;
  readonly resume?: string;
  readonly evalEvery: number;
  readonly saveEvery: number;
  readonly stopAt?: number;
}

/** Settings that a model brings with it, by their names in `PretrainSettings`. */
const SHAPE_FLAGS = ["vocab", "hidden", "layers", "heads", "kvHeads", "headSize", "mlp"] as const;
/** What may be given when a run is resumed; the rest it brings with it. */
const RESUME_FLAGS = ["resume", "evalEvery", "saveEvery", "stopAt"];
const MAX_POSITIONS = 512;
const MAX_GRAD_NORM = 1;
const VALIDATION_BATCHES = 16;
const LOG_EVERY = 20;

async function main(): Promise<void> {
  const program = command("pretrain", "Pretrains a small Qwen3-style chat model from text.")
    .option("--corpora <dir>", "folder with the text corpora; without it only generated dialogues are used")
    .option("--out <dir>", "new folder for tokenizer, checkpoints and model")
    .option("--init <dir>", "the --out folder of a finished run: start from its model and tokenizer")
    .option("--resume <dir>", "an --out folder of an earlier run: continue it with its own settings")
    .option("--generated <n>", "generated dialogues", integer(100), 200000)
    .option("--corpora-ratio <x>", "characters of corpora per generated character", number(0), 0.5)
    .option("--vocab <n>", "vocabulary size", integer(300, 65535), 2048)
    .option("--hidden <n>", "hidden size", integer(8), 128)
    .option("--layers <n>", "layers", integer(1), 4)
    .option("--heads <n>", "query heads", integer(1), 4)
    .option("--kv-heads <n>", "key/value heads", integer(1), 2)
    .option("--head-size <n>", "head size", integer(2), 32)
    .option("--mlp <n>", "MLP width", integer(8), 384)
    .option("--row-length <n>", "tokens per training row", integer(8, MAX_POSITIONS), 128)
    .option("--batch <n>", "rows per step", integer(1), 8)
    .option("--steps <n>", "training steps", integer(1), 6000)
    .option("--warmup <n>", "steps of linear warm-up", integer(0), 100)
    .option("--learning-rate <x>", "peak learning rate", number(0), 3e-3)
    .option("--weight-decay <x>", "decoupled weight decay", number(0), 0.05)
    .option("--seed <n>", "seed of text, weights and order", integer(0, 0xffffffff), 1)
    .option("--eval-every <n>", "steps between validation losses", integer(1), 500)
    .option("--save-every <n>", "steps between checkpoints", integer(1), 250)
    .option("--stop-at <n>", "save and stop after this many steps (the schedule still ends at --steps)", integer(1))
    .parse();
  const flags = program.opts<Flags>();
  const given = SHAPE_FLAGS.find((name) => program.getOptionValueSource(name) === "cli");
  if (flags.init !== undefined && given !== undefined) {
    throw new UsageError(`--init brings the model's shape with it: drop the flag for ${given}`);
  }
  if ((flags.out === undefined) === (flags.resume === undefined)) {
    throw new UsageError("give either --out DIR for a new run or --resume DIR for an old one");
  }
  const fixed = program.options.find((option) => {
    const name = option.attributeName();
    return program.getOptionValueSource(name) === "cli" && !RESUME_FLAGS.includes(name);
  });
  if (flags.resume !== undefined && fixed !== undefined) {
    throw new UsageError(`${fixed.long} cannot change when a run is resumed. Fix: drop it, or start a new run`);
  }
  await openGpu();
  console.error(`adapter: ${describeGpu()}`);
  const run = flags.resume !== undefined ? resumeRun(flags.resume) : startRun(flags);
  await train(run, flags);
}

interface Run {
  readonly directory: string;
  readonly settings: PretrainSettings;
  /** Those of the runs that this one continues, the first one first. */
  readonly earlierSettings: readonly StageSettings[];
  readonly model: Gpt;
  readonly optimizer: AdamW;
  readonly firstStep: number;
  readonly trainRows: Uint16Array;
  readonly validationRows: Uint16Array;
}

function startRun(flags: Flags): Run {
  const directory = flags.out!;
  requireNewDirectory(directory, "--out");
  const earlier = flags.init === undefined ? null : readEarlierStage(flags.init);
  const settings = settingsOf(flags, earlier);
  checkShape(settings);
  const { train: trainText, validation, sources } = collectDialogues(settings, (line) => console.error(line));
  lockFolder(directory);
  if (settings.init === null) writeTokenizer(directory, trainText, settings.vocab, settings.rowLength);
  else copyTextFiles(join(settings.init, "model"), directory);
  const trainRows = packRows(directory, trainText, settings.rowLength);
  const validationRows = packRows(directory, validation, settings.rowLength);
  if (trainRows.length === 0 || validationRows.length === 0) {
    rmSync(directory, { recursive: true });
    throw new UsageError(
      `the text does not fill one training and one validation row of ${settings.rowLength} tokens. ` +
        "Fix: a higher --generated or a lower --row-length",
    );
  }
  const write = (name: string, content: object): void =>
    writeFileSync(join(directory, name), JSON.stringify(content, null, 1) + "\n");
  write("sources.json", mergeSources(earlier?.sources ?? [], sources));
  if (earlier) write("init.json", earlier.stages);
  writeFileSync(join(directory, "rows.bin"), trainRows);
  writeFileSync(join(directory, "validation_rows.bin"), validationRows);
  const model = settings.init === null ? newModel(directory, settings) : loadGpt(join(settings.init, "model"));
  return {
    directory,
    settings,
    earlierSettings: earlier?.stages ?? [],
    model,
    optimizer: createOptimizer(model, settings),
    firstStep: 0,
    trainRows,
    validationRows,
  };
}

/** A model with random weights for the tokenizer in `directory`. */
function newModel(directory: string, settings: PretrainSettings): Gpt {
  const vocabulary = JSON.parse(readFileSync(join(directory, "tokenizer.json"), "utf8")) as {
    added_tokens: { id: number }[];
  };
  const vocabSize = Math.max(...vocabulary.added_tokens.map(({ id }) => id)) + 1;
  const config: GptConfig = {
    ...FAMILIES.qwen3,
    vocabSize,
    hiddenSize: settings.hidden,
    layers: settings.layers,
    heads: settings.heads,
    kvHeads: settings.kvHeads,
    headSize: settings.headSize,
    mlpSize: settings.mlp,
    normEps: 1e-6,
    rope: { theta: 10000 },
    maxPositions: MAX_POSITIONS,
    tiedEmbeddings: true,
  };
  return createGpt(config, initialWeights(config, settings.seed));
}

/** The flags that determine the result, without those of a single call. */
function settingsOf(flags: Flags, earlier: EarlierStage | null): PretrainSettings {
  const { generated, corporaRatio, vocab, hidden, layers, heads, kvHeads, headSize, mlp } = flags;
  const { rowLength, batch, steps, warmup, learningRate, weightDecay, seed } = flags;
  return {
    corpora: flags.corpora ?? null,
    init: flags.init ?? null,
    generated,
    corporaRatio,
    vocab,
    hidden,
    layers,
    heads,
    kvHeads,
    headSize,
    mlp,
    rowLength,
    batch,
    steps,
    warmup,
    learningRate,
    weightDecay,
    seed,
    ...(earlier && shapeOf(earlier.config)),
  };
}

function shapeOf(config: GptConfig): Pick<PretrainSettings, (typeof SHAPE_FLAGS)[number]> {
  const { vocabSize, hiddenSize, layers, heads, kvHeads, headSize, mlpSize } = config;
  return { vocab: vocabSize, hidden: hiddenSize, layers, heads, kvHeads, headSize, mlp: mlpSize };
}

function checkShape({ heads, kvHeads, headSize }: PretrainSettings): void {
  if (heads % kvHeads !== 0) throw new UsageError(`--heads ${heads} must be a multiple of --kv-heads ${kvHeads}`);
  if (headSize % 2 !== 0) throw new UsageError(`--head-size ${headSize} must be even: rotary positions turn pairs`);
}

function resumeRun(directory: string): Run {
  if (existsSync(directory)) lockFolder(directory); // else the next line says so
  const { settings, step, model, restoreOptimizer } = loadTrainingState(join(directory, "checkpoint"));
  const readRows = (name: string): Uint16Array => {
    const bytes = readFileSync(join(directory, name));
    return new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 2).slice();
  };
  const optimizer = createOptimizer(model, settings);
  restoreOptimizer(optimizer);
  truncateMetrics(join(directory, "metrics.jsonl"), step);
  return {
    directory,
    settings,
    earlierSettings: settings.init === null ? [] : readStages(directory),
    model,
    optimizer,
    firstStep: step,
    trainRows: readRows("rows.bin"),
    validationRows: readRows("validation_rows.bin"),
  };
}

function createOptimizer(model: Gpt, { weightDecay }: PretrainSettings): AdamW {
  return adamw([...model.parameters.values()], { beta2: 0.95, weightDecay, maxGradNorm: MAX_GRAD_NORM });
}

/**
 * Initial weights as GPT-2's: normal(0, 0.02), projections into the residual stream scaled by 1/sqrt(2 layers), norms
 * 1.
 */
function initialWeights(config: GptConfig, seed: number): (name: string, shape: readonly number[]) => Float32Array {
  const normal = seededNormal(seed);
  return (name, shape) => {
    const size = shape.reduce((n, m) => n * m, 1);
    if (name.includes("norm")) return new Float32Array(size).fill(1);
    const residual = name.endsWith("o_proj.weight") || name.endsWith("down_proj.weight");
    const std = 0.02 * (residual ? 1 / Math.sqrt(2 * config.layers) : 1);
    return Float32Array.from({ length: size }, () => std * normal());
  };
}

async function train(run: Run, flags: Flags): Promise<void> {
  const { directory, settings, model, optimizer, trainRows } = run;
  const { steps, batch, rowLength, seed } = settings;
  const parameters = [...model.parameters.values()];
  const lastStep = Math.min(steps, flags.stopAt ?? steps);
  if (flags.stopAt !== undefined && flags.stopAt <= run.firstStep) {
    throw new UsageError(`--stop-at ${flags.stopAt}: ${run.firstStep} steps are done. Fix: a higher one`);
  }
  console.error(
    `model: ${(parameterCount(model.config) / 1e6).toFixed(2)} M parameters; text: ${(trainRows.length / 1e6).toFixed(2)} M tokens; ` +
      `${steps} steps of ${batch} x ${rowLength} tokens = ${((steps * batch * rowLength) / trainRows.length).toFixed(2)} epochs`,
  );
  let stopSignal: NodeJS.Signals | null = null;
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.once(signal, () => {
      stopSignal = signal;
      console.error(`${signal}: finishing this step, then saving`);
    });
  }
  const save = (step: number): Promise<void> =>
    saveTrainingState(join(directory, "checkpoint"), directory, { settings, step, model, optimizer });
  const log = (record: object): void => appendFileSync(join(directory, "metrics.jsonl"), JSON.stringify(record) + "\n");

  const started = performance.now();
  for (let step = run.firstStep; step < lastStep; step++) {
    const learningRate =
      settings.learningRate * cosineSchedule(step + 1, { warmupSteps: settings.warmup, totalSteps: steps + 1 });
    const ids = batchAt(trainRows, { step, batch, rowLength, seed });
    const { loss, gradNorm } = await scopeAsync(async () => {
      const value = nextTokenLoss(model, ids, batch, rowLength);
      backward(value);
      const { gradNorm } = optimizer.step(learningRate);
      zeroGrad(parameters);
      const [losses, norms] = await readAll([value.value, gradNorm]);
      return { loss: losses![0]!, gradNorm: norms![0]! };
    });
    if (!Number.isFinite(loss) || !Number.isFinite(gradNorm)) {
      throw new NumericsError(
        `step ${step + 1}: loss ${loss}, gradient norm ${gradNorm}. The weights were not saved. ` +
          "Fix: a new run with a lower --learning-rate",
      );
    }
    const done = step + 1;
    log({ step: done, loss, grad_norm: gradNorm, learning_rate: learningRate });
    if (done % LOG_EVERY === 0 || done === lastStep) {
      const seconds = (performance.now() - started) / 1000;
      const perStep = seconds / (done - run.firstStep);
      console.error(
        `step ${done}/${steps}  loss ${loss.toFixed(4)}  ${Math.round((batch * rowLength) / perStep)} tokens/s  ` +
          `${duration((lastStep - done) * perStep)} left`,
      );
    }
    if (done % flags.evalEvery === 0 || done === steps) {
      const validationLoss = await evaluate(model, run);
      log({ step: done, eval_loss: validationLoss });
      console.error(`step ${done}/${steps}  validation loss ${validationLoss.toFixed(4)}`);
    }
    if (done % flags.saveEvery === 0 || done === lastStep || stopSignal) await save(done);
    if (stopSignal) {
      console.error(`saved. Continue with: npx tsx src/model/pretrain.ts --resume ${directory}`);
      process.exit(stopSignal === "SIGINT" ? 130 : 143);
    }
  }
  if (lastStep === steps) {
    const target = join(directory, "model");
    await saveGpt(model, target, { dtype: "BF16", textFrom: directory });
    writeFileSync(join(target, "README.md"), await describeModel(run, target));
    console.error(`model: ${target}`);
  }
}

/** The model card, from what the run has left in its folder. */
async function describeModel(run: Run, target: string): Promise<string> {
  const { directory, settings, earlierSettings, trainRows, validationRows } = run;
  const chat = loadChatModel(target);
  const records = readFileSync(join(directory, "metrics.jsonl"), "utf8")
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line) as { step: number; eval_loss?: number });
  const evaluated = Math.min(VALIDATION_BATCHES * settings.batch, validationRows.length / settings.rowLength);
  const card = await modelCard(chat, {
    stages: [...earlierSettings, { ...settings }],
    parameters: parameterCount(chat.model.config),
    trainTokens: settings.steps * settings.batch * settings.rowLength,
    textTokens: trainRows.length,
    sources: readSources(directory),
    validation: records.flatMap(({ step, eval_loss: loss }) => (loss === undefined ? [] : [{ step, loss }])),
    validationTokens: evaluated * (settings.rowLength - 1),
  });
  disposeGpt(chat.model);
  return card;
}

/** Mean validation loss over a fixed set of held-out rows. */
async function evaluate(model: Gpt, { settings, validationRows }: Run): Promise<number> {
  const { batch, rowLength } = settings;
  const rows = Math.min(VALIDATION_BATCHES * batch, validationRows.length / rowLength);
  let sum = 0;
  for (let row = 0; row < rows; row += batch) {
    const count = Math.min(batch, rows - row);
    const ids = Uint32Array.from(validationRows.subarray(row * rowLength, (row + count) * rowLength));
    sum +=
      count *
      (await scopeAsync(async () => (await read(nextTokenLoss(frozen(model), ids, count, rowLength).value))[0]!));
  }
  return sum / rows;
}

/** Drops the metrics of steps after the checkpoint: they are about to be run again. */
function truncateMetrics(path: string, step: number): void {
  if (!existsSync(path)) return;
  const lines = readFileSync(path, "utf8").split("\n").slice(0, -1); // what follows the last line break was cut off
  const kept = lines.filter((line) => (JSON.parse(line) as { step: number }).step <= step);
  writeFileSync(path, kept.map((line) => line + "\n").join(""));
}

/** 3725 -> "1h02m". */
function duration(seconds: number): string {
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes}m` : `${Math.floor(minutes / 60)}h${String(minutes % 60).padStart(2, "0")}m`;
}

await runMain(main);
