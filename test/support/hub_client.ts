/** A command that resolves a model and prints its directory, as the entries do; two of these at once are a test. */
import { runMain } from "../../src/cli.ts";
import { resolveModel } from "../../src/data/hub.ts";

await runMain(async () => console.log(await resolveModel(process.argv[2]!)));
