/**
 * report.html: one page about a run, in its folder. It is made from the run's files alone, so that it can be written
 * for any run at any time, also for one that was interrupted; the same files give the same bytes. It holds no script
 * and needs no network.
 */
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { UsageError } from "../cli.ts";
import { readRun } from "./report/data.ts";

/**
 * Writes `report.html` into the folder of a run, over an earlier one, and returns its path.
 *
 * @throws UsageError when the folder holds no run
 */
export async function writeReport(run: string): Promise<string> {
  if (!["config.json", "metrics.jsonl"].some((name) => existsSync(join(run, name)))) {
    throw new UsageError(`${run} holds no run (config.json, metrics.jsonl). Fix: give the --out folder of train.ts`);
  }
  const data = await readRun(run);
  // The charts' library is loaded only here: training starts without it.
  const [{ reportPage }, { textOf }] = await Promise.all([import("./report/page.ts"), import("./report/html.ts")]);
  const path = join(run, "report.html");
  writeFileSync(path, textOf(reportPage(run, data)));
  return path;
}
