/**
 * scripts/setup.mjs and src/tensor/driver.ts, each in a miniature project in a temporary folder with stand-ins for
 * npm, apt-get and the webgpu package, so that the real node_modules and .cache are never touched.
 */
import { spawn } from "node:child_process";
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { aptSources } from "../scripts/software_driver.mjs";

const repository = fileURLToPath(new URL("..", import.meta.url));
const linux = process.platform === "linux";
const debian = linux && existsSync("/etc/debian_version") && existsSync("/etc/apt");
const noAdapter = "export const create = () => ({ requestAdapter: async () => null });";
const someAdapter = "export const create = () => ({ requestAdapter: async () => ({}) });";
const mustNotLoad = 'export const create = null; throw new Error("webgpu was loaded");';

/** The miniature project. A space in its path, because home folders have them. */
let root: string;

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "webgrpo setup-"));
  for (const name of ["setup.mjs", "software_driver.mjs"]) {
    cpSync(join(repository, "scripts", name), join(root, "scripts", name));
  }
  write("package.json", '{ "type": "module" }');
  const lock = JSON.stringify({ packages: { "": {}, "node_modules/webgpu": { version: "1.0.0" } } });
  write("package-lock.json", lock);
  write("node_modules/.package-lock.json", lock);
  write("node_modules/webgpu/package.json", '{ "type": "module", "main": "index.js" }');
  write("node_modules/webgpu/index.js", noAdapter);
  write("calls", "");
  for (const program of ["npm", "apt-get", "dpkg-deb", "ldd"]) stub(program, "exit 0");
});

afterEach(() => {
  rmSync(root, { recursive: true, force: true });
});

function write(path: string, text: string): void {
  mkdirSync(dirname(join(root, path)), { recursive: true });
  writeFileSync(join(root, path), text);
}

/** Puts a program first on the PATH that records its name and arguments, then runs `script`. */
function stub(program: string, script: string): void {
  write(`bin/${program}`, `#!/bin/sh\necho "${program} $*" >> "${root}/calls"\n${script}\n`);
  chmodSync(join(root, "bin", program), 0o755);
}

const calls = (): string[] => readFileSync(join(root, "calls"), "utf8").split("\n").filter(Boolean);

interface Outcome {
  readonly status: number | null;
  readonly stdout: string;
  /** Lines of stderr. */
  readonly complaints: string[];
}

function runNode(args: string[], env: NodeJS.ProcessEnv, cwd = root): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, args, { cwd, env });
    let stdout = "";
    let stderr = "";
    child.stdout.on("data", (data) => (stdout += String(data)));
    child.stderr.on("data", (data) => (stderr += String(data)));
    child.on("error", reject);
    child.on("close", (status) => resolve({ status, stdout, complaints: stderr.split("\n").filter(Boolean) }));
  });
}

function setup(options: { path?: string; nodeOptions?: string[] } = {}): Promise<Outcome> {
  const path = options.path ?? `${join(root, "bin")}:${process.env.PATH}`;
  return runNode([...(options.nodeOptions ?? []), join(root, "scripts", "setup.mjs")], { PATH: path });
}

describe.skipIf(process.platform === "win32")("setup: packages", () => {
  beforeEach(() => write("node_modules/webgpu/index.js", someAdapter));

  test("does nothing when all is there", async () => {
    expect(await setup()).toEqual({ status: 0, stdout: "", complaints: [] });
    write("node_modules/webgpu/index.js", mustNotLoad); // the adapter is asked for only once
    expect(await setup()).toEqual({ status: 0, stdout: "", complaints: [] });
    expect(calls()).toEqual([]);
  });

  test("without package-lock.json, as unpacked from npm, takes what is found, or installs without dev packages", async () => {
    rmSync(join(root, "package-lock.json"));
    expect(await setup()).toEqual({ status: 0, stdout: "", complaints: [] });
    rmSync(join(root, "node_modules"), { recursive: true });
    stub("npm", `mkdir -p node_modules/webgpu; cp "${root}/kept/"* node_modules/webgpu`);
    write("kept/package.json", '{ "type": "module", "main": "index.js" }');
    write("kept/index.js", someAdapter);
    expect((await setup()).status).toBe(0);
    expect(calls()).toEqual(["npm install --omit=dev --no-audit --no-fund"]);
  });

  test.each([
    ["missing", () => rmSync(join(root, "node_modules/.package-lock.json"))],
    ["outdated", () => write("package-lock.json", '{ "packages": { "node_modules/webgpu": { "version": "2.0.0" } } }')],
    ["incomplete", () => write("package-lock.json", '{ "packages": { "node_modules/new": { "version": "1.0.0" } } }')],
  ])("installs packages that are %s, and two setups at once do it once", async (_name, damage) => {
    damage();
    stub("npm", "sleep 0.3; cp package-lock.json node_modules/.package-lock.json");
    const outcomes = await Promise.all([setup(), setup()]);
    expect(outcomes.map(({ status }) => status)).toEqual([0, 0]);
    expect(calls()).toEqual(["npm ci --include=dev --no-audit --no-fund"]);
    const complaints = outcomes.flatMap((outcome) => outcome.complaints);
    expect(complaints).toContain("setup: installing the npm packages (about 240 MB, only this once)");
    expect(existsSync(join(root, ".cache/setup.lock"))).toBe(false);
  });

  test("an optional package for another platform may be absent", async () => {
    write("package-lock.json", '{ "packages": { "node_modules/mac": { "version": "1.0.0", "optional": true } } }');
    expect((await setup()).status).toBe(0);
    expect(calls()).toEqual([]);
  });

  test("npm's failure becomes one line, and the next run tries again", async () => {
    rmSync(join(root, "node_modules/.package-lock.json"));
    stub("npm", 'echo "npm error code ENOTFOUND" >&2; echo "npm error network is unreachable" >&2; exit 1');
    const { status, complaints } = await setup();
    expect(status).toBe(1);
    expect(complaints.slice(1)).toEqual([expect.stringMatching(/npm ci --include=dev failed \(network is unreachable\)\. Fix: /)]);
    await setup();
    expect(calls()).toHaveLength(2);
  });

  test("takes over the lock of a process that has died", async () => {
    rmSync(join(root, "node_modules/.package-lock.json"));
    stub("npm", "cp package-lock.json node_modules/.package-lock.json");
    write(".cache/setup.lock/pid", String(2 ** 22 + 1)); // above the largest process id of Linux
    expect((await setup()).status).toBe(0);
    expect(existsSync(join(root, ".cache/setup.lock"))).toBe(false);
  });

  test("an old Node is named, with the one to install", async () => {
    write("old.cjs", 'Object.defineProperty(process, "versions", { value: { node: "20.18.3" } });');
    const { status, complaints } = await setup({ nodeOptions: ["--require", join(root, "old.cjs")] });
    expect(status).toBe(1);
    expect(complaints).toEqual(["setup: Node 20.18.3 is too old. Fix: install Node 20.19 or newer"]);
  });
});

describe.runIf(linux)("setup: driver", () => {
  const driver = (...path: string[]): string => join(root, ".cache", "gpu", ...path);
  const entries = (): string[] => (existsSync(driver()) ? readdirSync(driver()).sort() : []);

  test("an installed driver is not checked again", async () => {
    write(".cache/gpu/lib/libvulkan_lvp.so", "");
    write(".cache/gpu/shaders/kept", "");
    write("node_modules/webgpu/index.js", mustNotLoad);
    expect(await setup()).toEqual({ status: 0, stdout: "", complaints: [] });
    expect(calls()).toEqual([]);
  });

  test("its shaders are compiled once, in two processes, which may fail", async () => {
    write(".cache/gpu/lib/libvulkan_lvp.so", "");
    write("node_modules/tsx/package.json", '{ "type": "module", "main": "index.js" }');
    const record = 'appendFileSync("calls", process.argv.slice(-2).join(" ") + "\\n"); process.exit(1);';
    write("node_modules/tsx/index.js", `import { appendFileSync } from "node:fs"; ${record}`);
    const complaints = ["setup: compiling shaders for the software driver (some seconds, only this once)"];
    expect(await setup()).toEqual({ status: 0, stdout: "", complaints });
    expect(await setup()).toEqual({ status: 0, stdout: "", complaints: [] });
    const script = join(root, "scripts", "warm_shaders.ts");
    expect(calls().sort()).toEqual([`${script} gradients`, `${script} rollouts`]);
  });

  test("a webgpu package that does not load is not taken for a missing driver", async () => {
    write("node_modules/webgpu/index.js", mustNotLoad);
    const { status, complaints } = await setup();
    expect(status).toBe(1);
    expect(complaints).toEqual([expect.stringMatching(/"webgpu" does not run here: Error: webgpu was loaded\. Fix: /)]);
    expect(calls()).toEqual([]);
  });

  test("without apt-get: one line that names the packages to install", async () => {
    for (const program of ["apt-get", "dpkg-deb"]) rmSync(join(root, "bin", program));
    const { status, complaints } = await setup({ path: join(root, "bin") });
    expect(status).toBe(1);
    expect(complaints).toHaveLength(1);
    for (const words of ["Fix: ", "apt install mesa-vulkan-drivers", "dnf install", "pacman -S vulkan-swrast"]) {
      expect(complaints[0]).toContain(words);
    }
    expect(entries()).toEqual([]);
  });

  test.runIf(debian)("apt-get's failure becomes one line, and nothing half-made stays", async () => {
    stub("apt-get", '[ "$1" = --version ] || { echo "noise" >&2; echo "E: Failed to fetch" >&2; exit 100; }');
    const { status, complaints } = await setup();
    expect(status).toBe(1);
    expect(complaints.slice(1)).toEqual([expect.stringMatching(/failed: apt-get: E: Failed to fetch\. Fix: /)]);
    expect(entries()).toEqual([]);
    expect(readdirSync(join(root, ".cache"))).toEqual(["gpu"]); // no lock, no note of an adapter
  });

  /** Stand-ins that "download" two packages, one of the base system, and "unpack" a driver and a library too many. */
  function stubDownload(): void {
    stub(
      "apt-get",
      'work=$(dirname "$3"); case "$*" in *install*) ' +
        'for name in mesa libc6; do : > "$work/archives/${name}_1_amd64.deb"; done;; esac',
    );
    stub(
      "dpkg-deb",
      '[ "$1" = -x ] || exit 0; mkdir -p "$3/usr/lib"; cd "$3/usr/lib"; ' +
        "for name in libvulkan_lvp.so libvulkan.so.1.3 libz3.so.4 libvulkan_intel.so; do echo $name > $name; done; " +
        "ln -sf libvulkan.so.1.3 libvulkan.so.1",
    );
    stub(
      "ldd",
      'printf "\\tlibz3.so.4 => %s/libz3.so.4 (0x01)\\n\\tlibc.so.6 => /lib/libc.so.6 (0x02)\\n" "$(dirname "$1")"',
    );
  }

  test.runIf(debian)("keeps exactly the libraries that the driver loads", async () => {
    stubDownload();
    const withDriver = "process.env.VK_ADD_DRIVER_FILES ? {} : null";
    write("node_modules/webgpu/index.js", noAdapter.replace("null", withDriver));
    write(".cache/gpu/shaders/kept", "");
    write(".cache/gpu/new-killed/rest", "");
    expect((await setup()).status).toBe(0);
    expect(entries()).toEqual(["lib", "lvp_icd.json", "shaders"]);
    expect(readdirSync(driver("lib")).sort()).toEqual(["libvulkan.so.1", "libvulkan_lvp.so", "libz3.so.4"]);
    expect(readFileSync(driver("lib", "libvulkan.so.1"), "utf8")).toBe("libvulkan.so.1.3\n"); // the file, not the link
    expect(calls().filter((call) => call.startsWith("dpkg-deb -x") && call.includes("libc6"))).toEqual([]);
    expect(JSON.parse(readFileSync(driver("lvp_icd.json"), "utf8"))).toMatchObject({
      ICD: { library_path: "./lib/libvulkan_lvp.so" },
    });
  });

  test.runIf(debian)("a driver that WebGPU refuses is not kept", async () => {
    stubDownload();
    const { status, complaints } = await setup();
    expect(status).toBe(1);
    expect(complaints.slice(1)).toEqual([expect.stringMatching(/WebGPU does not accept .* Fix: /)]);
    expect(entries()).toEqual([]);
  });
});

describe("doctor: packages", () => {
  /** In a project one folder down, beside whose parent's node_modules npm may have put its packages. */
  async function doctor(): Promise<string> {
    for (const path of ["scripts/doctor.ts", "src/tensor/driver.ts"]) {
      cpSync(join(repository, path), join(root, "app", path));
    }
    const dev = '"devDependencies": { "checker": "3.0.0" }';
    write("app/package.json", `{ "type": "module", "dependencies": { "webgpu": "1.0.0", "near": "2.0.0" }, ${dev} }`);
    write("node_modules/webgpu/package.json", '{ "type": "module", "main": "index.js", "version": "1.0.0" }');
    write("app/node_modules/near/package.json", '{ "version": "2.0.0", "exports": "./none.js" }');
    return (await runNode(["--import", "tsx", join(root, "app", "scripts", "doctor.ts")], process.env, repository)).stdout;
  }

  test("unpacked from npm: hoisted ones count, dev packages are not asked for", async () => {
    const report = await doctor();
    expect(report).toMatch(/webgpu +1\.0\.0\n +near +2\.0\.0\n/);
    expect(report).toContain("no WebGPU adapter"); // the stand-in was loaded
    expect(report).not.toMatch(/checker|package \S+ is /);
  });

  test("in a clone the dev packages are missed", async () => {
    write("app/package-lock.json", "{}");
    expect(await doctor()).toContain("package checker is missing, wanted 3.0.0. Fix: run `node scripts/setup.mjs`");
  });
});

describe("aptSources", () => {
  const file = (path: string, text: string): { path: string; text: string } => ({ path, text });

  test("Debian 12 gets its backports; comments and other archives are passed over", () => {
    const text = [
      "Types: deb\nURIs: http://security.test/\nSuites: bookworm-security\nComponents: main\nSigned-By: /s.gpg",
      "Types: deb deb-src\n# why\nURIs: http://debian.test/\nSuites: bookworm bookworm-updates\n" +
        "Components: main contrib\nSigned-By: /d.gpg",
    ].join("\n\n");
    expect(aptSources([file("debian.sources", text)], "bookworm")).toBe(
      "Types: deb\nURIs: http://debian.test/\nSuites: bookworm bookworm-backports\nComponents: main\n" +
        "Signed-By: /d.gpg\n",
    );
  });

  test("the one-line format, and a vendor's archive that uses the codename too", () => {
    const files = [
      file("a-vendor.list", "deb [arch=amd64 signed-by=/v.gpg] https://vendor.test noble main"),
      file(
        "ubuntu.list",
        "# deb http://old.test noble-updates main\ndeb-src http://u.test noble-updates main\n" +
          "deb cdrom:[disc]/ noble-updates main\n" +
          "deb [arch=amd64 signed-by=/u.gpg] http://u.test noble-updates main # x",
      ),
    ];
    expect(aptSources(files, "noble")).toBe(
      "Types: deb\nURIs: http://u.test\nSuites: noble noble-updates\nComponents: main\nSigned-By: /u.gpg\n",
    );
  });

  test("a key inside the file stays whole", () => {
    const key = "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----";
    const text = `Types: deb\nURIs: http://d.test\nSuites: trixie\nComponents: main\nSigned-By:${key}\n`;
    expect(aptSources([file("d.sources", text)], "trixie")).toContain(`Signed-By: ${key}\n`);
  });

  test("no archive of the release, or a disabled one", () => {
    const text = "Types: deb\nEnabled: no\nURIs: http://d.test\nSuites: trixie\nComponents: main\n";
    expect(aptSources([file("d.sources", text)], "trixie")).toBe("");
    expect(aptSources([file("d.sources", text.replace("no", "yes"))], "forky")).toBe("");
  });
});

describe.runIf(linux)("prepareDriver", () => {
  /** Calls it twice in a process of its own. `report`: the libraries loaded, then the environment afterwards. */
  async function prepare(env: NodeJS.ProcessEnv = {}): Promise<Outcome & { report: string[] }> {
    cpSync(join(repository, "src/tensor/driver.ts"), join(root, "src/tensor/driver.ts"));
    const program = `
      const { prepareDriver } = await import(${JSON.stringify(join(root, "src/tensor/driver.ts"))});
      const real = process.dlopen;
      process.dlopen = (module, path, flags) => {
        console.log(path);
        if (path.includes("good")) throw new Error("Module did not self-register");
        if (path.includes("late") && late++ === 0) throw new Error("libgood.so.1: cannot open shared object file");
        if (path.includes("bad")) throw new Error("wrong ELF class");
      };
      let late = 0;
      prepareDriver();
      prepareDriver();
      process.dlopen = real;
      for (const name of ["VK_ADD_DRIVER_FILES", "MESA_SHADER_CACHE_DIR", "XDG_RUNTIME_DIR"])
        console.log(name + "=" + process.env[name]);`;
    const args = ["--import", "tsx", "--input-type=module", "--eval", program];
    const outcome = await runNode(args, { PATH: process.env.PATH, ...env }, repository);
    return { ...outcome, report: outcome.stdout.replaceAll(`${root}/`, "").split("\n").filter(Boolean) };
  }

  test("without a driver it only gives compiled shaders a place", async () => {
    const { report } = await prepare();
    expect(report).toEqual([
      "VK_ADD_DRIVER_FILES=undefined",
      "MESA_SHADER_CACHE_DIR=.cache/gpu/shaders",
      `XDG_RUNTIME_DIR=${tmpdir()}`,
    ]);
    expect(existsSync(join(root, ".cache/gpu/shaders"))).toBe(true);
  });

  test("loads each library, those that wait for another one later, and nothing on the second call", async () => {
    for (const name of ["libvulkan_lvp.so", "libgood.so.1", "liblate.so.1"]) write(`.cache/gpu/lib/${name}`, "");
    const { report } = await prepare();
    const loads = report.filter((line) => line.startsWith(".cache/gpu/lib/"));
    expect(loads.sort()).toEqual([
      ".cache/gpu/lib/libgood.so.1",
      ".cache/gpu/lib/liblate.so.1",
      ".cache/gpu/lib/liblate.so.1",
    ]);
    expect(report).toContain("VK_ADD_DRIVER_FILES=.cache/gpu/lvp_icd.json");
  });

  test("keeps what the user has set", async () => {
    write(".cache/gpu/lib/libvulkan_lvp.so", "");
    const env = { VK_ADD_DRIVER_FILES: "/mine.json", MESA_SHADER_CACHE_DIR: "/mine", XDG_RUNTIME_DIR: "/run/mine" };
    const { report } = await prepare(env);
    expect(report).toEqual(Object.entries(env).map(([name, value]) => `${name}=${value}`));
  });

  test("a damaged driver is an error with its cause and fix", async () => {
    for (const name of ["libvulkan_lvp.so", "libbad.so.1"]) write(`.cache/gpu/lib/${name}`, "");
    const { status, complaints } = await prepare();
    expect(status).toBe(1);
    expect(complaints.join("\n")).toMatch(/does not load \(wrong ELF class\)\. Fix: delete \.cache\/gpu/);
  });
});
