import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { accessSync, constants, existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join, resolve } from "node:path";
import {
  freePort,
  rotateLog,
  spawnChild,
  StartError,
  startFailure,
  waitUntil,
  type Child,
  type Log,
} from "./process.ts";

/** A running server; `url` holds the password. */
export type Redis = { url: string; pid: number; exited: Promise<number>; stop(): Promise<void>; kill(): void };

type Program = { path: string; env: Record<string, string> };

const path = process.env["PATH"] ?? "/usr/bin:/bin";

/** Starts Redis (or Valkey) on a free port of 127.0.0.1, with a password (its own unless given) and nothing kept on disk. */
export async function startRedis(options: { dataDir: string | null; log: Log; password?: string }): Promise<Redis> {
  const program = findInstalled() ?? findDownloaded() ?? (await downloadRedis(options.log));
  const folder = options.dataDir ?? mkdtempSync(join(tmpdir(), "reef-redis-"));
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const logFile = join(folder, "redis.log");
  rotateLog(logFile);
  const password = options.password ?? randomBytes(24).toString("hex");
  const clean = () => {
    if (options.dataDir === null) rmSync(folder, { recursive: true, force: true });
  };
  for (let attempt = 1; attempt <= 3; attempt += 1) {
    const port = freePort();
    const url = `redis://:${password}@127.0.0.1:${port}`;
    const child = spawnServer(program, folder, logFile, port, password);
    if (await waitUntil(child, 10_000, () => answers(url))) {
      const stop = async () => {
        await child.stop("SIGTERM", 2_000);
        clean();
      };
      return { url, pid: child.pid, exited: child.exited, stop, kill: () => child.kill("SIGKILL") };
    }
    await child.stop("SIGKILL", 0);
  }
  throw startFailure("Redis", logFile);
}

/** The settings go in on stdin: on the command line the password would be in the process list. */
function spawnServer(program: Program, folder: string, logFile: string, port: number, password: string): Child {
  const settings = [
    `port ${port}`,
    "bind 127.0.0.1",
    `requirepass ${password}`,
    `dir "${folder}"`,
    'save ""',
    "appendonly no",
    "daemonize no",
  ];
  return spawnChild({
    command: [program.path, "-"],
    env: program.env,
    deathSignal: "KILL",
    logFile,
    input: `${settings.join("\n")}\n`,
  });
}

async function answers(url: string): Promise<boolean> {
  const client = new Bun.RedisClient(url, { connectionTimeout: 1_000, autoReconnect: false });
  try {
    return (await client.ping()) === "PONG";
  } finally {
    client.close();
  }
}

function runs(program: Program): boolean {
  return spawnSync(program.path, ["--version"], { env: program.env, stdio: "ignore" }).status === 0;
}

function findInstalled(): Program | null {
  for (const name of ["redis-server", "valkey-server"]) {
    const found = Bun.which(name, { PATH: `${path}:/usr/local/bin:/usr/bin:/usr/sbin` });
    if (found !== null && runs({ path: found, env: { PATH: path } })) return { path: found, env: { PATH: path } };
  }
  return null;
}

/** Where an unpacked Redis is kept, best first: the user's cache survives a new checkout, node_modules works without a home. */
function cacheFolders(): string[] {
  const cache = process.env["XDG_CACHE_HOME"] || (homedir() ? join(homedir(), ".cache") : "");
  const own = resolve(import.meta.dir, "../../node_modules/.cache/reef");
  return cache.startsWith("/") ? [join(cache, "reef"), own] : [own];
}

function unpacked(folder: string): Program {
  const libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map((name) => join(folder, name));
  return { path: join(folder, "usr/bin/redis-server"), env: { PATH: path, LD_LIBRARY_PATH: libraries.join(":") } };
}

function findDownloaded(): Program | null {
  for (const cache of cacheFolders()) {
    const program = unpacked(join(cache, "redis"));
    if (existsSync(program.path) && runs(program)) return program;
  }
  return null;
}

function writableCache(): string {
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

/** Unpacks the distribution's own package (apt checks its signature) into the cache; needs no root and installs nothing. */
async function downloadRedis(log: Log): Promise<Program> {
  const advice = "install redis-server or valkey-server with your package manager, or give REDIS_URL";
  if (Bun.which("apt-get") === null || Bun.which("dpkg-deb") === null) {
    throw new StartError(`Redis is not installed, and without apt it can't be fetched: ${advice}.`);
  }
  log("fetching Redis (not installed here)");
  const cache = writableCache();
  const half = mkdtempSync(join(cache, "redis-new-"));
  try {
    await fetchPackages(half, ["redis-server", "redis-tools", "libjemalloc2", "liblzf1"]);
    if (!runs(unpacked(join(half, "root")))) await fetchPackages(half, ["libatomic1", "libssl3", "libssl3t64"]);
    if (!runs(unpacked(join(half, "root")))) throw new StartError(`Redis could not be fetched with apt: ${advice}.`);
    const done = join(cache, "redis");
    if (!findDownloaded()) {
      rmSync(done, { recursive: true, force: true });
      renameSync(join(half, "root"), done);
    }
    return unpacked(done);
  } finally {
    rmSync(half, { recursive: true, force: true });
  }
}

/** Names that this release of the distribution does not have are skipped: whether Redis then runs is what counts. */
async function fetchPackages(folder: string, names: string[]): Promise<void> {
  const root = join(folder, "root");
  mkdirSync(root, { recursive: true });
  const asWeAre = ["-o", "APT::Sandbox::User="];
  const ownLists = [
    "-o",
    `Dir::State::lists=${join(folder, "lists")}`,
    "-o",
    `Dir::Cache=${join(folder, "apt")}`,
    "-o",
    "Dir::State::status=/var/lib/dpkg/status",
    ...asWeAre,
  ];
  const before = existsSync(join(folder, "lists")) ? ownLists : asWeAre;
  await download(folder, before, names);
  if (packageFiles(folder).length === 0 && before !== ownLists) {
    // An image without package lists: fetch them into our own folder.
    mkdirSync(join(folder, "lists/partial"), { recursive: true });
    mkdirSync(join(folder, "apt/archives/partial"), { recursive: true });
    await run(folder, ["apt-get", ...ownLists, "-qq", "update"]);
    await download(folder, ownLists, names);
  }
  for (const file of packageFiles(folder)) {
    await run(folder, ["dpkg-deb", "-x", file, root]);
    rmSync(join(folder, file));
  }
}

async function download(folder: string, options: string[], names: string[]): Promise<void> {
  if (await run(folder, ["apt-get", ...options, "-qq", "download", ...names])) return;
  for (const name of names) await run(folder, ["apt-get", ...options, "-qq", "download", name]);
}

function packageFiles(folder: string): string[] {
  return readdirSync(folder).filter((name) => name.endsWith(".deb"));
}

async function run(cwd: string, command: string[]): Promise<boolean> {
  // The whole environment goes along: apt may need the proxy variables.
  const child = Bun.spawn(["setpriv", "--pdeathsig=KILL", ...command], {
    cwd,
    stdout: "ignore",
    stderr: "ignore",
    stdin: "ignore",
  });
  return (await child.exited) === 0;
}
