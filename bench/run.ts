/**
 * All benchmarks for this adapter: npm run bench. Medians after a warm-up. Absolute times hold for this machine only.
 */
import { describeGpu, openGpu } from "../src/tensor/device.ts";
import { DEFAULT_MODEL } from "../src/model/chat_model.ts";
import { benchAttention } from "./attention.ts";
import { runExperiment } from "./experiment.ts";
import { benchMatmul, benchMatmulVariants } from "./matmul.ts";
import { benchModel } from "./model.ts";
import { printTable } from "./table.ts";

await openGpu();
console.log(`${describeGpu()}, Node ${process.version}, ${new Date().toISOString().slice(0, 10)}`);
printTable("Matrix products", await benchMatmul());
printTable("Matrix products of the model by kernel, GFLOPS", await benchMatmulVariants());
printTable("Attention", await benchAttention());
printTable("The model in weights/", await benchModel(DEFAULT_MODEL));
printTable("The reference experiment, whole process", [runExperiment(1)]);
process.exit(0);
