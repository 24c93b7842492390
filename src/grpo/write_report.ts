/**
 * Writes the page of a run again, also of one that was interrupted:
 *
 *   npx tsx src/grpo/write_report.ts runs/mine
 */
import { command, runMain } from "../cli.ts";
import { writeReport } from "./report.ts";

await runMain(async () => {
  const program = command("write_report", "Writes report.html into the folder of a GRPO run.")
    .argument("<run>", "the run's folder")
    .parse();
  console.log(await writeReport(program.args[0]!));
});
