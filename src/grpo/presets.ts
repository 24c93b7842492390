/** Settings that go together, by name: `--preset NAME`. Names are those of the configuration file; flags win. */

type Settings = Readonly<Record<string, string | number | boolean>>;

export const PRESETS = {
  /** The reference experiment; what runs when no flag is given. */
  digit: { environment: "digit" },
  /** One-digit sums, differences and comparisons, evaluated on problems that are never trained on. */
  arithmetic: {
    environment: "arithmetic",
    objective: "dapo",
    trainSteps: 100,
    promptsPerStep: 32,
    rolloutCount: 8,
    maxRolloutTokens: 6,
    replay: "groups",
    groupsPerUpdate: 32,
    gradUpdatesPerStep: 1,
    learningRate: 2e-4,
    maxGradNorm: 1,
    evalEvery: 25,
    saveEvery: 25,
  },
  /** Reach a number with others, in <answer> tags: for a capable model on a GPU. */
  countdown: {
    environment: "countdown",
    model: "Qwen/Qwen3-0.6B",
    objective: "dapo",
    epsilonHigh: 0.28,
    trainSteps: 100,
    promptsPerStep: 8,
    rolloutCount: 8,
    maxRolloutTokens: 256,
    overlongBuffer: 64,
    replay: "groups",
    groupsPerUpdate: 8,
    gradUpdatesPerStep: 1,
    microBatch: 8,
    gradientCheckpointing: true,
    learningRate: 1e-6,
    maxGradNorm: 1,
    evalEvery: 20,
    saveEvery: 10,
  },
} as const satisfies Record<string, Settings>;
