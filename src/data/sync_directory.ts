// Renames that survive a power cut.

import { closeSync, fsyncSync, openSync } from "node:fs";

/** Makes renames in a directory durable. Windows cannot open a directory and does not need it. */
export function syncDirectory(directory: string): void {
  if (process.platform === "win32") return;
  const handle = openSync(directory, "r");
  fsyncSync(handle);
  closeSync(handle);
}
