/**
 * `npm run doctor`: prints what WebGRPO finds on this machine, then what is wrong with it and how to fix it.
 * Exit status 0 if healthy, 1 otherwise.
 *
 * Uses the `webgpu` package directly and only `driver.ts` of the engine, so that it works when the engine does not.
 */
import { existsSync, readdirSync, readFileSync, statfsSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { freemem, release, totalmem } from "node:os";
import { join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { driverFolder, prepareDriver } from "../src/tensor/driver.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const setup = "run `node scripts/setup.mjs`";

/** Lines of "what is wrong. Fix: what to do". */
const problems: string[] = [];

/** The limits that decide how large a model can be and how kernels are launched. */
const limits = [
  ["maxBufferSize", "bytes"],
  ["maxStorageBufferBindingSize", "bytes"],
  ["maxComputeWorkgroupStorageSize", "bytes"],
  ["maxComputeWorkgroupsPerDimension", "workgroups"],
  ["minStorageBufferOffsetAlignment", "bytes"],
] as const;

reportSystem();
reportPackages();
await reportAdapter();
reportFiles();

if (problems.length === 0) {
  console.log("\nHealthy: nothing to fix.");
} else {
  console.log(`\n${problems.length} to fix:`);
  for (const problem of problems) console.log(`  - ${problem}`);
  process.exitCode = 1;
}

function heading(title: string): void {
  console.log(`\n${title}`);
}

function fact(name: string, value: string | number | boolean): void {
  console.log(`  ${name.padEnd(34)} ${value}`);
}

function reportSystem(): void {
  heading("System");
  fact("Node", process.versions.node);
  fact("platform", `${process.platform} ${process.arch}, kernel ${release()}`);
  fact("memory", `${formatBytes(freemem())} free of ${formatBytes(totalmem())}`);
  const disk = statfsSync(root);
  const freeDisk = disk.bavail * disk.bsize;
  fact("disk, free", formatBytes(freeDisk));

  const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
  if (major < 20 || (major === 20 && minor < 19)) problems.push("Node is too old. Fix: install Node 20.19 or newer");
  if (totalmem() < 2 ** 31) problems.push("less than 2 GiB of memory. Fix: use a machine with more");
  if (freeDisk < 2 ** 29) problems.push("less than 512 MiB of free disk. Fix: make room");
}

function reportPackages(): void {
  heading("Packages");
  const manifest = readJson(join(root, "package.json")) as Partial<Record<string, Record<string, string>>>;
  // Only a clone has package-lock.json. The package from npm is installed without dev packages (setup.mjs).
  const isClone = existsSync(join(root, "package-lock.json"));
  const packages = { ...manifest["dependencies"], ...(isClone ? manifest["devDependencies"] : {}) };
  for (const [name, wanted] of Object.entries(packages)) {
    const version = installedVersion(name) ?? "missing";
    fact(name, version);
    const exact = /^\d/.test(wanted);
    if (version === "missing" || (exact && version !== wanted)) {
      problems.push(`package ${name} is ${version}, wanted ${wanted}. Fix: ${setup}`);
    }
  }
}

/** Of the package that a program of this project would find: in its own node_modules, or hoisted into one above. */
function installedVersion(name: string): string | undefined {
  const folders = createRequire(join(root, "package.json")).resolve.paths(name) ?? [];
  const manifest = folders.map((folder) => join(folder, name, "package.json")).find((path) => existsSync(path));
  return manifest === undefined ? undefined : (readJson(manifest) as { version: string }).version;
}

async function reportAdapter(): Promise<void> {
  heading("Adapter");
  let adapter: GPUAdapter | null;
  try {
    prepareDriver();
    const { create } = await import("webgpu");
    const gpu = create([]);
    Object.assign(globalThis, { doctorGpu: gpu }); // a collected instance would take the adapter down with it
    adapter = await gpu.requestAdapter();
  } catch (error) {
    problems.push(error instanceof Error ? error.message : String(error));
    return;
  }
  if (!adapter) {
    problems.push(`no WebGPU adapter. Fix: delete .cache and ${setup}: it fetches a driver or names one to install`);
    reportDriver();
    return;
  }
  const { vendor, architecture, device, description, isFallbackAdapter, subgroupMinSize, subgroupMaxSize } =
    adapter.info;
  fact("vendor", vendor);
  fact("architecture", architecture);
  fact("device", device);
  fact("description", description);
  fact("runs on", isFallbackAdapter ? "the CPU (software driver)" : "a GPU");
  fact("subgroup size", `${subgroupMinSize} to ${subgroupMaxSize} threads`);
  fact("timestamp-query", adapter.features.has("timestamp-query"));
  fact("shader-f16", adapter.features.has("shader-f16"));
  fact("subgroups", adapter.features.has("subgroups"));
  for (const [name, unit] of limits) {
    const value = adapter.limits[name] ?? 0;
    fact(name, unit === "bytes" ? formatBytes(value) : `${value} ${unit}`);
  }
  reportDriver();

  try {
    const gpuDevice = await adapter.requestDevice();
    gpuDevice.destroy();
    fact("opening a device", "works");
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    problems.push(`the adapter opens no device (${reason}). Fix: update the Vulkan driver`);
  }
}

/** Which driver files this process really uses, as the kernel lists them; Linux only. */
function reportDriver(): void {
  if (process.platform !== "linux") {
    fact("driver", "part of the system");
    return;
  }
  const mapped = readFileSync("/proc/self/maps", "utf8").matchAll(/\/.*\/(?:libvulkan_|libGLX_nvidia).*$/gm);
  const drivers = new Set(Array.from(mapped, ([path]) => (path.startsWith(root) ? relative(root, path) : path)));
  fact("driver files in use", [...drivers].join(", ") || "none");
  const local = existsSync(join(driverFolder, "lib", "libvulkan_lvp.so"));
  fact("software driver in .cache/gpu", local ? "installed" : "not installed");
  for (const name of ["VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES", "MESA_SHADER_CACHE_DIR"]) {
    const value = process.env[name];
    if (value !== undefined) fact(name, value);
    if (value !== undefined && name.startsWith("VK_") && !value.split(":").every((path) => existsSync(path))) {
      problems.push(`${name} names a file that does not exist. Fix: unset ${name}`);
    }
  }
}

function reportFiles(): void {
  heading("Files");
  reportFolder("shader cache", join(driverFolder, "shaders"));
  reportFolder("software driver", join(driverFolder, "lib"));
  const weights = join(root, "weights");
  const files = existsSync(weights) ? readdirSync(weights, { recursive: true, encoding: "utf8" }) : [];
  const tensors = files.filter((name) => name.endsWith(".safetensors"));
  fact("weights", tensors.map((name) => `weights/${name}`).join(", ") || "none");
  if (tensors.length === 0) {
    problems.push("no weights/*.safetensors. Fix: restore the folder (`git checkout weights`) or `npm run pretrain`");
  }
}

function reportFolder(name: string, folder: string): void {
  try {
    fact(name, formatBytes(folderBytes(folder)));
  } catch {
    fact(name, "not readable");
    problems.push(`the ${name} cannot be read. Fix: make ${folder} yours (\`chown\`), or delete it`);
  }
}

function readJson(path: string): unknown {
  return JSON.parse(readFileSync(path, "utf8"));
}

/** Sum of the sizes of all files below `folder`, in bytes; 0 if it does not exist. */
function folderBytes(folder: string): number {
  if (!existsSync(folder)) return 0;
  let bytes = 0;
  for (const entry of readdirSync(folder, { recursive: true, withFileTypes: true })) {
    if (entry.isFile()) bytes += statSync(join(entry.parentPath, entry.name)).size;
  }
  return bytes;
}

function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}
