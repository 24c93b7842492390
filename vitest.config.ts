/**
 * The test runner. Every test file gets a process of its own: a shader that never ends or a crash in the driver then
 * costs that file only, whereas in a shared process or thread it would hang or end the whole run.
 *
 * No driver variables are needed: `openGpu` finds the driver in each process (src/tensor/driver.ts).
 */
import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    pool: "forks",
    isolate: true,
    maxWorkers: 2, // the software driver uses several threads by itself
    testTimeout: 60_000, // the first run compiles every shader
    hookTimeout: 60_000,
    teardownTimeout: 3_000,
    reporters: ["default"],
  },
});
