import { spawnSync } from "node:child_process";
import { accessSync, constants, existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { StartError, type Log } from "./process.ts";
import { dyingWithUs } from "../../src/lib/deathSignal.ts";

/** How to start a program that may lie in a folder of its own: with `env`, and nothing else, in its environment. */
export type Program = {
  path: string;
  env: Record<string, string>;
  /** Where its package was unpacked; "/" for one that is installed. */
  root: string;
};

/** A program of the distribution, and the packages that bring it. */
export type ProgramSpec = {
  title: string;
  /** Names it is looked for under when it is installed. */
  names: string[];
  /** Where it is kept unpacked, in the cache. */
  folder: string;
  /** Its file in the package. */
  file: string;
  /** Names that a release of the distribution does not have are skipped: whether the program runs is what counts. */
  packages: string[];
  /** Libraries that only a bare image lacks. */
  bare?: string[];
  /** What to do where it can't be fetched. */
  advice: string;
  /** Variables that tell the unpacked program where its folders are, which it would look for in the system. */
  folders?: Record<string, string>;
  /** Prints its version and ends with 0; default `--version`. */
  versionArgs?: string[];
};

const path = process.env["PATH"] ?? "/usr/bin:/bin";

/** The installed program, or the distribution's own package unpacked into the cache (no root, nothing is installed). Throws StartError. */
export async function findProgram(spec: ProgramSpec, log: Log): Promise<Program> {
  return findInstalled(spec) ?? findDownloaded(spec) ?? (await download(spec, log));
}

function runs(program: Program, { versionArgs = ["--version"] }: ProgramSpec): boolean {
  return spawnSync(program.path, versionArgs, { env: program.env, stdio: "ignore" }).status === 0;
}

function findInstalled(spec: ProgramSpec): Program | null {
  for (const name of spec.names) {
    const found = Bun.which(name, { PATH: `${path}:/usr/local/bin:/usr/bin:/usr/local/sbin:/usr/sbin` });
    const program = found === null ? null : { path: found, env: { PATH: path }, root: "/" };
    if (program && runs(program, spec)) return program;
  }
  return null;
}

/** Where unpacked packages are kept, best first: the user's cache survives a new checkout, node_modules works without a home. */
function cacheFolders(): string[] {
  const cache = process.env["XDG_CACHE_HOME"] || (homedir() ? join(homedir(), ".cache") : "");
  const own = resolve(import.meta.dir, "../../node_modules/.cache/reef");
  return cache.startsWith("/") ? [join(cache, "reef"), own] : [own];
}

function unpacked(root: string, spec: ProgramSpec): Program {
  const libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/systemd"].map(
    (name) => join(root, name),
  );
  const folders = Object.entries(spec.folders ?? {}).map(([name, folder]) => [name, join(root, folder)] as const);
  const env = { PATH: path, LD_LIBRARY_PATH: libraries.join(":"), ...Object.fromEntries(folders) };
  return { path: join(root, spec.file), env, root };
}

function findDownloaded(spec: ProgramSpec): Program | null {
  for (const cache of cacheFolders()) {
    const program = unpacked(join(cache, spec.folder), spec);
    if (existsSync(program.path) && runs(program, spec)) return program;
  }
  return null;
}

/** The folder that outlives a run: made when it is missing, and writable. */
export function writableCache(): string {
  for (const folder of cacheFolders()) {
    try {
      mkdirSync(folder, { recursive: true });
      accessSync(folder, constants.W_OK);
      return folder;
    } catch {
      continue;
    }
  }
  return mkdtempSync(join(tmpdir(), "reef-cache-"));
}

/** apt checks the packages' signatures. */
async function download(spec: ProgramSpec, log: Log): Promise<Program> {
  const { title, advice } = spec;
  if (Bun.which("apt-get") === null || Bun.which("dpkg-deb") === null) {
    throw new StartError(`${title} is not installed, and without apt it can't be fetched: ${advice}.`);
  }
  log(`fetching ${title} (not installed here)`);
  const cache = writableCache();
  const half = mkdtempSync(join(cache, `${spec.folder}-new-`));
  try {
    const { packages, bare = [] } = spec;
    const works = () => runs(unpacked(join(half, "root"), spec), spec);
    await fetchPackages(half, packages);
    if (!works()) await fetchPackages(half, bare);
    // Old package lists name versions that are no longer there; some of the others came all the same.
    if (!works()) {
      await updateLists(half);
      await fetchPackages(half, [...packages, ...bare]);
    }
    if (!works()) throw new StartError(`${title} could not be fetched with apt: ${advice}.`);
    const done = join(cache, spec.folder);
    if (!findDownloaded(spec)) {
      rmSync(done, { recursive: true, force: true });
      renameSync(join(half, "root"), done);
    }
    return unpacked(done, spec);
  } finally {
    rmSync(half, { recursive: true, force: true });
  }
}

const AS_WE_ARE = ["-o", "APT::Sandbox::User="];
const listsOf = (folder: string) =>
  [
    ["-o", `Dir::State::lists=${join(folder, "lists")}`],
    ["-o", `Dir::Cache=${join(folder, "apt")}`],
    ["-o", "Dir::State::status=/var/lib/dpkg/status"],
    AS_WE_ARE,
  ].flat();

/** Package lists of our own, as they are now. */
async function updateLists(folder: string): Promise<void> {
  mkdirSync(join(folder, "lists/partial"), { recursive: true });
  mkdirSync(join(folder, "apt/archives/partial"), { recursive: true });
  await run(folder, ["apt-get", ...listsOf(folder), "-qq", "update"]);
}

async function fetchPackages(folder: string, names: string[]): Promise<void> {
  const root = join(folder, "root");
  mkdirSync(root, { recursive: true });
  const hasOwnLists = () => existsSync(join(folder, "lists"));
  await downloadPackages(folder, hasOwnLists() ? listsOf(folder) : AS_WE_ARE, names);
  if (packageFiles(folder).length === 0 && !hasOwnLists()) {
    await updateLists(folder);
    await downloadPackages(folder, listsOf(folder), names);
  }
  for (const file of packageFiles(folder)) {
    await run(folder, ["dpkg-deb", "-x", file, root]);
    rmSync(join(folder, file));
  }
}

async function downloadPackages(folder: string, options: string[], names: string[]): Promise<void> {
  if (await run(folder, ["apt-get", ...options, "-qq", "download", ...names])) return;
  for (const name of names) await run(folder, ["apt-get", ...options, "-qq", "download", name]);
}

function packageFiles(folder: string): string[] {
  return readdirSync(folder).filter((name) => name.endsWith(".deb"));
}

async function run(cwd: string, command: string[]): Promise<boolean> {
  // The whole environment goes along: apt may need the proxy variables.
  const child = Bun.spawn([...dyingWithUs("KILL"), ...command], {
    cwd,
    stdout: "ignore",
    stderr: "ignore",
    stdin: "ignore",
  });
  return (await child.exited) === 0;
}
