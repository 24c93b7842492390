/**
 * Finds the software Vulkan driver that `scripts/setup.mjs` put into `.cache/gpu`, without environment variables set
 * by the user. Call `prepareDriver` before `webgpu` is asked for an adapter.
 *
 * Two obstacles, and why this gets past them:
 *
 * - Dawn opens `libvulkan.so.1` by name, and that library opens the driver, whose dependencies are named too. A search
 *   path (LD_LIBRARY_PATH) is read once, when the process starts, so it is too late to set it here. But the dynamic
 *   linker answers a request for a name from the libraries that are already loaded. So each library of the folder
 *   is loaded up front, with the only loader call that Node has: `process.dlopen`. None of them is a Node add-on, and
 *   Node therefore throws and closes the library again; RTLD_NODELETE keeps it in memory all the same.
 * - The Vulkan loader has to hear about the driver. VK_ADD_DRIVER_FILES *adds* it to those of the system: Dawn ranks
 *   adapters, a GPU before a CPU, so a machine that gets a GPU later uses it at once, and an old GPU that Dawn refuses
 *   does not stand in the way. (The loader ignores the variable if the user chose drivers by VK_DRIVER_FILES.)
 *
 * Main thread or forked process only: in a worker thread `process.env` is a copy that the C library does not see.
 */
import { constants, tmpdir } from "node:os";
import { existsSync, mkdirSync, readdirSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** The project's driver folder; a trailing separator is included. */
export const driverFolder = fileURLToPath(new URL("../../.cache/gpu/", import.meta.url));

/** Linux' value; Node's `os.constants.dlopen` lists the other flags but not this one. */
const RTLD_NODELETE = 0x1000;

let prepared = false;

/**
 * Makes the project's Vulkan driver loadable if there is one, and keeps compiled shaders in `.cache/gpu/shaders` for
 * any driver of the Mesa family. Linux only; elsewhere, and on every call after the first, it does nothing.
 * Variables that the user has set are left as they are.
 * @throws Error if the driver's libraries cannot be loaded (another architecture, a damaged copy).
 */
export function prepareDriver(): void {
  if (prepared || process.platform !== "linux") return;
  prepared = true;

  process.env.MESA_SHADER_CACHE_DIR ??= shaderFolder();
  process.env.XDG_RUNTIME_DIR ??= tmpdir(); // without one Mesa complains on stderr at every start

  if (!existsSync(`${driverFolder}lib/libvulkan_lvp.so`)) return;
  process.env.VK_ADD_DRIVER_FILES ??= `${driverFolder}lvp_icd.json`;
  loadLibraries(`${driverFolder}lib/`);
}

/** Mesa creates the folder itself, but not its parents. Where that is not allowed it goes on without a cache. */
function shaderFolder(): string {
  const folder = `${driverFolder}shaders`;
  try {
    mkdirSync(folder, { recursive: true });
  } catch {
    // A read-only installation: compiling again costs time, nothing else.
  }
  return folder;
}

/** Loads every library of `folder` but the driver, which the Vulkan loader opens itself by its path. */
function loadLibraries(folder: string): void {
  let waiting = readdirSync(folder).filter((name) => name !== "libvulkan_lvp.so");
  // A library loads only after those that it needs, and the order is not known: go round until a round gains nothing.
  for (;;) {
    let reason = "";
    const failed = waiting.filter((name) => {
      const message = loadLibrary(folder + name);
      reason ||= message;
      return message !== "";
    });
    if (failed.length === 0) return;
    if (failed.length === waiting.length) {
      throw new Error(
        `the software Vulkan driver in .cache/gpu does not load (${reason}). ` +
          "Fix: delete .cache/gpu and run `node scripts/setup.mjs`",
      );
    }
    waiting = failed;
  }
}

/** Loads one library for good. Returns why it failed, or "". */
function loadLibrary(path: string): string {
  try {
    process.dlopen({ exports: {} }, path, constants.dlopen.RTLD_NOW | RTLD_NODELETE);
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    return message.includes("did not self-register") ? "" : message; // that complaint means: loaded, but no add-on
  }
  return "";
}
