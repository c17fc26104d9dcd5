import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startPostgres } from "../../scripts/services/postgres.ts";
import { startRedis } from "../../scripts/services/redis.ts";

/** A server that cells kill and stop. Its port may change with each start: whoever uses it comes through a proxy. */
export interface Victim {
  port(): number;
  kill(): Promise<void>;
  /** After a kill. */
  start(): Promise<void>;
  pause(): void;
  resume(): void;
}

/** The Postgres and the Redis of one run, kept over its cells. */
export interface Servers {
  folder: string;
  postgres: Victim;
  redis: Victim;
  /** With the ports of now; cells put their proxies' in. */
  postgresUrl: string;
  redisUrl: string;
  stop(): Promise<void>;
}

export async function startServers(): Promise<Servers> {
  const folder = mkdtempSync(join(tmpdir(), "reef-faults-"));
  chmodSync(folder, 0o711);
  // Durable: what was committed must be there after a kill.
  const launchPostgres = () =>
    startPostgres({ dataDir: join(folder, "postgres"), durable: true, log: () => undefined });
  const password = "faults-redis-password";
  const launchRedis = () => startRedis({ dataDir: join(folder, "redis"), log: () => undefined, password });
  const [postgres, redis] = await Promise.all([launchPostgres(), launchRedis()]);
  const victims = { postgres: victimOf(postgres, launchPostgres), redis: victimOf(redis, launchRedis) };
  return {
    folder,
    ...victims,
    postgresUrl: postgres.url,
    redisUrl: redis.url,
    async stop() {
      await Promise.all([victims.postgres.stop(), victims.redis.stop()]);
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

interface Launched {
  url: string;
  pid: number;
  exited: Promise<number>;
  stop(): Promise<void>;
  kill(): void;
}

function victimOf(first: Launched, launch: () => Promise<Launched>): Victim & { stop(): Promise<void> } {
  let server = first;
  let stopped: number[] = [];
  const signal = (name: "SIGSTOP" | "SIGCONT", pids: number[]) => {
    for (const pid of pids) {
      try {
        process.kill(pid, name);
      } catch {
        continue; // a backend that has just ended
      }
    }
  };
  return {
    port: () => Number(new URL(server.url).port),
    async kill() {
      server.kill();
      await server.exited;
    },
    async start() {
      server = await launch();
    },
    pause() {
      // The parent first: it must not notice that its children stand still.
      signal("SIGSTOP", [server.pid]);
      stopped = [server.pid, ...childrenOf(server.pid)];
      signal("SIGSTOP", stopped);
    },
    resume: () => signal("SIGCONT", stopped.reverse()),
    stop: () => server.stop(),
  };
}

function childrenOf(parent: number): number[] {
  return readdirSync("/proc")
    .map(Number)
    .filter((pid) => pid > 0 && parentOf(pid) === parent);
}

function parentOf(pid: number): number {
  try {
    // The name before it may hold anything, but no bracket behind its own.
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    return Number(
      stat
        .slice(stat.lastIndexOf(")") + 1)
        .trim()
        .split(" ")[1],
    );
  } catch {
    return 0;
  }
}
