/**
 * Preloaded into a training process (`node --import`): leaves what the GPU did in the file that BENCH_STATS names, when
 * the process ends.
 */
import { writeFileSync } from "node:fs";
import { memoryStats } from "../src/tensor/memory.ts";
import { recorderStats } from "../src/tensor/recorder.ts";

const path = process.env["BENCH_STATS"];
if (path !== undefined) {
  process.on("exit", () => writeFileSync(path, JSON.stringify({ ...memoryStats(), ...recorderStats() })));
}
