#!/usr/bin/env node
/**
 * Makes a fresh clone, or the package from npm, runnable, and does only what is missing: `npm start` and `npm test` run
 * it first every time.
 *
 *   1. checks the version of Node;
 *   2. installs what package-lock.json lists and is not there;
 *   3. on Linux, puts a software Vulkan driver into `.cache/gpu` (software_driver.mjs) if there is no WebGPU adapter;
 *   4. compiles the demo's shaders for that driver (warm_shaders.ts), which takes seconds.
 *
 * Plain JavaScript on Node's own modules, because it runs before anything is installed. When nothing is missing it
 * costs a few file reads. Whatever goes wrong ends as one line on stderr, cause and fix, and exit status 1.
 */
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { hostname } from "node:os";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";
import { installSoftwareDriver } from "./software_driver.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const cache = join(root, ".cache");
/** Part of a clone; npm leaves it out of the package that it publishes. */
const lockFile = join(root, "package-lock.json");
const driverFolder = join(cache, "gpu");
const softwareDriver = join(driverFolder, "lib", "libvulkan_lvp.so");
/** Where the driver keeps what it compiled (src/tensor/driver.ts). */
const shaderFolder = join(driverFolder, "shaders");
/** Remembers that this machine has an adapter of its own. Holds the host name: the folder may be on a shared disk. */
const adapterNote = join(cache, "adapter-of-host");

try {
  checkNodeVersion();
  if (!packagesInstalled() || !adapterKnown()) {
    withLock(() => {
      if (!packagesInstalled()) installPackages();
      if (!adapterKnown()) provideAdapter();
    });
  }
  if (existsSync(softwareDriver) && tryMakeFolder(shaderFolder)) await warmShaders();
} catch (error) {
  console.error(`setup: ${error instanceof Error ? error.message : error}`);
  process.exitCode = 1;
}

function checkNodeVersion() {
  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  if (major > 20 || (major === 20 && minor >= 19)) return;
  throw new Error(`Node ${process.versions.node} is too old. Fix: install Node 20.19 or newer`);
}

/**
 * Compares package-lock.json with the copy that npm leaves in node_modules as its last step, so that an interrupted
 * installation counts as missing and one made by hand counts as done. Optional packages (binaries for other platforms)
 * may be absent. Without package-lock.json this is an unpacked package, and whoever installed it has its dependencies.
 */
function packagesInstalled() {
  if (!existsSync(lockFile)) return resolves("webgpu");
  const copy = join(root, "node_modules", ".package-lock.json");
  if (!existsSync(copy)) return false;
  const wanted = readPackages(lockFile);
  const installed = readPackages(copy);
  return Object.keys(wanted).every((path) => {
    if (path === "") return true; // the project itself
    const there = installed[path];
    return there ? there.version === wanted[path]?.version : wanted[path]?.optional === true;
  });
}

/**
 * @param {string} name of a package
 * @returns {boolean} whether a program of this project would find it
 */
function resolves(name) {
  try {
    createRequire(join(root, "package.json")).resolve(name);
    return true;
  } catch {
    return false;
  }
}

/**
 * @param {string} file package-lock.json or npm's copy of it
 * @returns {Record<string, { version?: string, optional?: boolean }>} packages by path
 */
function readPackages(file) {
  return JSON.parse(readFileSync(file, "utf8")).packages;
}

function installPackages() {
  console.error("setup: installing the npm packages (about 240 MB, only this once)");
  // The dev packages of a clone hold the type checker and the test runner.
  const command = existsSync(lockFile) ? "npm ci --include=dev" : "npm install --omit=dev";
  // Through a shell, because npm is a .cmd file on Windows.
  const npm = spawnSync(`${command} --no-audit --no-fund`, { cwd: root, shell: true, encoding: "utf8" });
  if (npm.status === 0) return;
  const lines = npm.stderr.split("\n").filter((line) => line.trim() !== "" && !line.startsWith("npm warn"));
  const reason = lines.find((line) => !/^npm error (code|errno|syscall) /.test(line)) ?? `exit status ${npm.status}`;
  throw new Error(
    `${command} failed (${reason.replace(/^npm error /, "").trim()}). ` +
      `Fix: check the network connection and run the command again; \`${command}\` shows the details`,
  );
}

/** Whether an earlier run has settled the adapter. macOS and Windows bring one with the system. */
function adapterKnown() {
  if (process.platform !== "linux" || existsSync(softwareDriver)) return true;
  return existsSync(adapterNote) && readFileSync(adapterNote, "utf8") === hostname();
}

function provideAdapter() {
  if (adapterAnswers(null)) {
    writeFileSync(adapterNote, hostname());
    return;
  }
  installSoftwareDriver(driverFolder, adapterAnswers);
}

/**
 * Two processes, because within one the driver compiles one shader after the other. If they fail nothing is lost: the
 * first run then compiles the shaders itself, and says what is wrong.
 */
async function warmShaders() {
  console.error("setup: compiling shaders for the software driver (some seconds, only this once)");
  const script = join(root, "scripts", "warm_shaders.ts");
  const ends = ["rollouts", "gradients"].map((part) => new Promise((resolve) => {
    const args = ["--import", "tsx", script, part];
    spawn(process.execPath, args, { cwd: root, stdio: "ignore" }).on("error", resolve).on("close", resolve);
  }));
  await Promise.all(ends);
}

/**
 * Asks WebGPU for an adapter, in a process of its own: a search path for libraries works only from a process's start.
 * @param {string | null} folder of a software driver to offer besides the system's drivers
 */
function adapterAnswers(folder) {
  const none = 3;
  const program =
    'import { create } from "webgpu"; globalThis.gpu = create([]);' + // global, or it may be collected while in use
    `process.exit(await gpu.requestAdapter() ? 0 : ${none});`;
  const env = { ...process.env };
  if (folder !== null) {
    env.VK_ADD_DRIVER_FILES = join(folder, "lvp_icd.json");
    env.LD_LIBRARY_PATH = [join(folder, "lib"), env.LD_LIBRARY_PATH].filter(Boolean).join(delimiter);
  }
  const args = ["--input-type=module", "--eval", program];
  const child = spawnSync(process.execPath, args, { cwd: root, env, encoding: "utf8", timeout: 60_000 });
  if (child.status === 0 || child.status === none) return child.status === 0;
  const reason = /^\w*Error.*$/m.exec(child.stderr)?.[0] ?? `it ended with ${child.signal ?? child.status}`;
  throw new Error(
    `the package "webgpu" does not run here: ${reason}. ` +
      "Fix: use a glibc-based Linux on x64 or arm64, or delete node_modules and run the command again",
  );
}

/**
 * Runs `work` while holding `.cache/setup.lock`, so that of two setups started together one waits for the other.
 * Making a folder is the one file operation that is atomic everywhere and fails if somebody else was first.
 * @param {() => void} work
 */
function withLock(work) {
  const lock = join(cache, "setup.lock");
  const deadline = Date.now() + 15 * 60_000;
  mkdirSync(cache, { recursive: true });
  for (let waited = 0; !tryMakeFolder(lock); waited++) {
    if (isAbandoned(lock)) {
      rmSync(lock, { recursive: true, force: true });
    } else if (Date.now() > deadline) {
      throw new Error("another setup has been at work for 15 minutes. Fix: end it, and delete .cache/setup.lock");
    } else {
      if (waited === 0) console.error("setup: waiting for another setup of this folder");
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100); // sleeps 100 ms
    }
  }
  try {
    writeFileSync(join(lock, "pid"), String(process.pid));
    work();
  } finally {
    rmSync(lock, { recursive: true, force: true });
  }
}

/** @param {string} path @returns {boolean} false if it was there already */
function tryMakeFolder(path) {
  try {
    mkdirSync(path);
    return true;
  } catch (error) {
    if (errorCode(error) === "EEXIST") return false;
    throw error;
  }
}

/**
 * Whether the owner of the lock has died without a chance to remove it (Ctrl-C, out of memory).
 * @param {string} lock
 */
function isAbandoned(lock) {
  try {
    process.kill(Number(readFileSync(join(lock, "pid"), "utf8")), 0); // signal 0 only asks whether it exists
    return false;
  } catch (error) {
    if (errorCode(error) === "ESRCH") return true;
    // No process id yet: the owner is between its two steps, or has died there.
    const made = statSync(lock, { throwIfNoEntry: false });
    return errorCode(error) === "ENOENT" && made !== undefined && Date.now() - made.mtimeMs > 10_000;
  }
}

/** @param {unknown} error */
function errorCode(error) {
  return error instanceof Error && "code" in error ? error.code : undefined;
}
