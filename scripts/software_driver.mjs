/**
 * Puts Mesa's software Vulkan driver ("lavapipe") into a folder of the project, as a normal user.
 *
 * The packages are those of the machine's own Debian or Ubuntu archive, found and verified by `apt-get` with the
 * machine's own addresses and keys, but with a private state folder: an empty list of installed packages makes apt
 * resolve everything the driver needs, and nothing outside the project is written. They are unpacked without being
 * installed, and of the contents only the libraries that the driver really loads are kept (about 190 MB).
 */
import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";

/**
 * Part of every Debian and Ubuntu, and needed by Node itself. A second copy of the C library in one process would not
 * work, so these come from the system.
 */
const BASE_SYSTEM = /^(libc6|gcc-\d+-base|libgcc-s1|libstdc\+\+6|libtinfo6|zlib1g)_/;

/** Tells the Vulkan loader where the driver is, relative to this file, and which version of Vulkan it offers. */
const MANIFEST = {
  file_format_version: "1.0.0",
  ICD: { library_path: "./lib/libvulkan_lvp.so", api_version: "1.3.0" },
};

/**
 * Downloads the driver into `folder`: `lvp_icd.json`, which the Vulkan loader reads, and `lib/`. Other files there are
 * left alone. `lib` appears in one step, by a rename, after `works` has approved the finished copy.
 * @param {string} folder
 * @param {(folder: string) => boolean} works whether WebGPU finds an adapter with the driver in that folder
 * @throws {Error} one line: the cause, and what to do
 */
export function installSoftwareDriver(folder, works) {
  const release = readRelease();
  if (!hasProgram("apt-get") || !hasProgram("dpkg-deb")) throw new Error(adviceWithoutApt(release));
  const sources = aptSources(readSourceFiles(), release.codename);
  if (sources === "") throw new Error(`no package archive of ${release.name} found under /etc/apt. ${ADVICE}`);

  console.error("setup: no WebGPU adapter; fetching a software Vulkan driver (about 60 MB, only this once)");
  mkdirSync(folder, { recursive: true });
  for (const name of readdirSync(folder)) {
    // Left by a run that was killed. (The caller holds a lock, so no other run is at work.)
    if (name.startsWith("new-")) rmSync(join(folder, name), { recursive: true, force: true });
  }
  const work = mkdtempSync(join(folder, "new-"));
  try {
    const packages = download(work, sources, release.codename);
    const unpacked = join(work, "unpacked");
    for (const file of packages) run("dpkg-deb", ["-x", file, unpacked]);

    const finished = join(work, "gpu");
    mkdirSync(join(finished, "lib"), { recursive: true });
    keepNeededLibraries(unpacked, join(finished, "lib"));
    writeFileSync(join(finished, "lvp_icd.json"), JSON.stringify(MANIFEST) + "\n");
    if (!works(finished)) {
      throw new Error(`WebGPU does not accept the software Vulkan driver of ${release.name}. ${ADVICE}`);
    }

    rmSync(join(folder, "lib"), { recursive: true, force: true }); // an incomplete one, or there would be nothing to do
    renameSync(join(finished, "lvp_icd.json"), join(folder, "lvp_icd.json"));
    renameSync(join(finished, "lib"), join(folder, "lib")); // last: its presence means that all is there
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

const ADVICE =
  "Fix: install the Vulkan driver of your GPU, or a software driver (Debian 13, Ubuntu 24.04 or newer: " +
  "`sudo apt install mesa-vulkan-drivers libvulkan1`; Fedora: `sudo dnf install mesa-vulkan-drivers vulkan-loader`; " +
  "Arch: `sudo pacman -S vulkan-swrast vulkan-icd-loader`)";

/** @param {{ name: string }} release */
function adviceWithoutApt(release) {
  return `no WebGPU adapter, and without apt-get and dpkg-deb (${release.name}) none can be fetched. ${ADVICE}`;
}

/** @returns {{ name: string, codename: string }} a derivative (Mint, ...) names the release that it is built on */
function readRelease() {
  const file = "/etc/os-release";
  /** @type {Record<string, string>} */
  const fields = {};
  for (const line of existsSync(file) ? readFileSync(file, "utf8").split("\n") : []) {
    const [, name, value] = /^(\w+)="?(.*?)"?$/.exec(line) ?? [];
    if (name && value) fields[name] = value;
  }
  return {
    name: fields.PRETTY_NAME ?? "this Linux",
    codename: fields.UBUNTU_CODENAME ?? fields.DEBIAN_CODENAME ?? fields.VERSION_CODENAME ?? "unknown",
  };
}

/** @returns {{ path: string, text: string }[]} the machine's package sources */
function readSourceFiles() {
  const folder = "/etc/apt/sources.list.d";
  const more = existsSync(folder) ? readdirSync(folder).map((name) => join(folder, name)) : [];
  return ["/etc/apt/sources.list", ...more.sort()]
    .filter((path) => /\.(list|sources)$/.test(path) && existsSync(path))
    .map((path) => ({ path, text: readFileSync(path, "utf8") }));
}

/** Debian 12's own Mesa is too old for WebGPU; the one in its backports is not. */
const suitesOf = (/** @type {string} */ codename) =>
  codename === "bookworm" ? [codename, `${codename}-backports`] : [codename, `${codename}-updates`];

/**
 * The distribution's own archive, cut out of the machine's package sources and widened to the suites needed here.
 * @param {{ path: string, text: string }[]} files `*.sources` (stanzas of fields) and `*.list` (one line each)
 * @param {string} codename of the release, e.g. "bookworm"
 * @returns {string} one stanza in the format of a `.sources` file, or "" if no file names that archive
 */
export function aptSources(files, codename) {
  const entries = files.flatMap(({ path, text }) =>
    path.endsWith(".sources") ? parseStanzas(text) : parseLines(text),
  );
  /** @param {string} suite */
  const withSuite = (suite) =>
    entries.find(({ types, suites, components, enabled }) => {
      const has = (/** @type {string | undefined} */ field, /** @type {string} */ word) =>
        (field ?? "").split(/\s+/).includes(word);
      return has(types, "deb") && has(suites, suite) && has(components, "main") && enabled !== "no";
    });
  // Archives of other vendors use the codename too, but have no updates suite.
  const found = withSuite(`${codename}-updates`) ?? withSuite(codename);
  if (!found) return "";
  const lines = ["Types: deb", `URIs: ${found.uris}`, `Suites: ${suitesOf(codename).join(" ")}`, "Components: main"];
  if (found["signed-by"]) lines.push(`Signed-By: ${found["signed-by"]}`);
  if (found.trusted) lines.push(`Trusted: ${found.trusted}`);
  return lines.join("\n") + "\n";
}

/**
 * The deb822 format: stanzas set apart by empty lines; a value goes on in lines that start with a space.
 * @param {string} text
 * @returns {Record<string, string>[]} fields by name in lower case
 */
function parseStanzas(text) {
  return text.split(/\n\s*\n/).map((stanza) => {
    /** @type {Record<string, string>} */
    const fields = {};
    let name = "";
    for (const line of stanza.split("\n").filter((each) => !each.startsWith("#"))) {
      const [, field, value] = /^([\w-]+):\s*(.*)$/.exec(line) ?? [];
      if (field !== undefined) fields[(name = field.toLowerCase())] = value ?? "";
      else if (name !== "") fields[name] += `\n${line}`;
    }
    return fields;
  });
}

/**
 * The classic format: `deb [option=value ...] address suite component ...`.
 * @param {string} text
 * @returns {Record<string, string>[]} the same fields as `parseStanzas`
 */
function parseLines(text) {
  return text.split("\n").flatMap((line) => {
    const [, options = "", uris, suites, components] =
      /^deb\s+(?:\[([^\]]*)\]\s+)?(?!cdrom:)(\S+)\s+(\S+)\s+([^#]+)/.exec(line) ?? [];
    if (!uris || !suites || !components) return [];
    const pairs = options.split(/\s+/).filter((option) => option.includes("="));
    return [{ types: "deb", uris, suites, components, ...Object.fromEntries(pairs.map((pair) => pair.split("="))) }];
  });
}

/**
 * Downloads the driver and all that it depends on, except the base system.
 * @param {string} work private folder
 * @param {string} sources @param {string} codename
 * @returns {string[]} paths of .deb files
 */
function download(work, sources, codename) {
  for (const name of ["sources", "lists/partial", "archives/partial"]) mkdirSync(join(work, name), { recursive: true });
  writeFileSync(join(work, "sources", "distribution.sources"), sources);
  writeFileSync(join(work, "status"), ""); // nothing is installed: the result does not depend on the machine
  const settings = {
    "Dir::Etc::SourceList": "/dev/null",
    "Dir::Etc::SourceParts": join(work, "sources"),
    "Dir::Etc::Preferences": "/dev/null",
    "Dir::Etc::PreferencesParts": "/dev/null",
    "Dir::State": work,
    "Dir::State::Lists": join(work, "lists"),
    "Dir::State::Status": join(work, "status"),
    "Dir::Cache": work,
    "Dir::Cache::Archives": join(work, "archives"),
    "Debug::NoLocking": "true", // the folders are private
    "APT::Sandbox::User": "root", // run by root, apt would switch to a user who may not enter them
    "APT::Update::Error-Mode": "any", // a list that cannot be fetched is an error, not a warning
    "Acquire::Languages": "none",
    "Acquire::Retries": "2",
    "Acquire::http::Timeout": "30",
    "Acquire::https::Timeout": "30",
  };
  // The machine's own settings (a proxy, for one) stay, but not its hooks, which tidy up after a system-wide update.
  const hooks = ["Pre-Invoke", "Post-Invoke", "Post-Invoke-Success"].map((hook) => `#clear APT::Update::${hook};`);
  const lines = Object.entries(settings).map(([name, value]) => `${name} "${value}";`);
  writeFileSync(join(work, "apt.conf"), [...lines, ...hooks, "#clear APT::Default-Release;", ""].join("\n"));
  const options = ["-qq", "-c", join(work, "apt.conf")];
  run("apt-get", [...options, "update"]);
  // Only backports must be asked for: apt prefers the newest version everywhere else.
  if (codename === "bookworm") options.push("-t", `${codename}-backports`);
  const packages = ["mesa-vulkan-drivers", "libvulkan1"];
  run("apt-get", [...options, "--yes", "--download-only", "--no-install-recommends", "install", ...packages]);
  return readdirSync(join(work, "archives"))
    .filter((name) => name.endsWith(".deb") && !BASE_SYSTEM.test(name))
    .map((name) => join(work, "archives", name));
}

/**
 * Moves the driver, the Vulkan loader and what they load into `lib`, each under the one name it is asked for by.
 * @param {string} unpacked folder with the contents of all packages @param {string} lib
 */
function keepNeededLibraries(unpacked, lib) {
  const files = readdirSync(unpacked, { recursive: true, encoding: "utf8" }).map((name) => join(unpacked, name));
  const searchPath = [...new Set(files.filter((path) => /\.so(\.|$)/.test(path)).map(dirname))].join(":");
  const starts = files.filter((path) => ["libvulkan_lvp.so", "libvulkan.so.1"].includes(basename(path)));
  const needed = new Map(starts.map((path) => [basename(path), path]));
  for (const path of starts) {
    const list = run("ldd", [path], { LD_LIBRARY_PATH: searchPath });
    for (const [, name = "", file = ""] of list.matchAll(/^\s*(\S+) => (\/.+) \(0x/gm)) {
      if (file.startsWith(unpacked)) needed.set(name, file); // the others are the base system's
    }
  }
  for (const [name, path] of needed) renameSync(realpathSync(path), join(lib, name));
}

/** @param {string} program */
function hasProgram(program) {
  return spawnSync(program, ["--version"], { stdio: "ignore" }).error === undefined;
}

/**
 * Runs a program and returns what it printed.
 * @param {string} program @param {string[]} args
 * @param {Record<string, string>} env added to this process's
 * @throws {Error} with the program's first line of complaint
 */
function run(program, args, env = {}) {
  const child = spawnSync(program, args, { encoding: "utf8", env: { ...process.env, ...env, LC_ALL: "C" } });
  if (child.status === 0) return child.stdout;
  const lines = (child.stderr ?? "").split("\n").filter((line) => line.trim() !== "");
  const reason = lines.find((line) => line.startsWith("E:")) ?? lines[0] ?? child.error?.message ?? "it gave no reason";
  throw new Error(
    `fetching the software Vulkan driver failed: ${program}: ${reason.replace(/[\s.]+$/, "")}. ` +
      "Fix: check the network connection and the free disk space, and run the command again",
  );
}
