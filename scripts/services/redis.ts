import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findProgram, type Program } from "./debian.ts";
import { freePort, rotateLog, spawnChild, startFailure, waitUntil, type Child, type Log } from "./process.ts";

/** A running server; `url` holds the password. */
export type Redis = { url: string; pid: number; exited: Promise<number>; stop(): Promise<void>; kill(): void };

const REDIS = {
  title: "Redis",
  names: ["redis-server", "valkey-server"],
  folder: "redis",
  file: "usr/bin/redis-server",
  packages: ["redis-server", "redis-tools", "libjemalloc2", "liblzf1"],
  bare: ["libatomic1", "libssl3", "libssl3t64"],
  advice: "install redis-server or valkey-server with your package manager, or give REDIS_URL",
};

/** Starts Redis (or Valkey) on a free port of 127.0.0.1, with a password (its own unless given) and nothing kept on disk. */
export async function startRedis(options: { dataDir: string | null; log: Log; password?: string }): Promise<Redis> {
  const program = await findProgram(REDIS, options.log);
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
