import type { Redis } from "ioredis";
import { newId } from "../../lib/ids.ts";
import { sleep } from "../../lib/retry.ts";
import { bad, ok, onSystem, warn, type Check } from "./check.ts";

const CONNECT_MS = 5_000;

/** The client connects by itself and fails fast until then. Throws when it does not in time. */
async function connected(redis: Redis): Promise<void> {
  for (const until = Date.now() + CONNECT_MS; redis.status !== "ready"; await sleep(50))
    if (Date.now() > until) throw new Error("no connection to Redis");
}

/** What Redis says of itself, by name. Throws when it does not answer. */
export async function readRedisInfo(redis: Redis): Promise<Map<string, string>> {
  await connected(redis);
  const text = await redis.info();
  return new Map(text.split(/\r?\n/).map((line) => line.split(/:(.*)/s).slice(0, 2) as [string, string]));
}

const FULL = 0.9;

export const REDIS: readonly Check[] = [
  onSystem("redis.answers", async ({ deps: { redis } }) => {
    try {
      await connected(redis);
      const began = performance.now();
      await redis.ping();
      return ok(`in ${Math.round(performance.now() - began)} ms`);
    } catch {
      return bad(
        "it does not answer: chats go on, slower",
        "systemctl status redis-server, or docker ps; is REDIS_URL right?",
      );
    }
  }),
  onSystem("redis.writable", async ({ deps: { redis } }) => {
    const key = `doctor:${newId()}`;
    const fix = "redis-cli info says why (memory, persistence, replication); Reef needs no persistence";
    await connected(redis);
    try {
      await redis.set(key, "1", "EX", 10);
      await redis.del(key);
      return ok("a key was set and taken away");
    } catch (error) {
      return bad(`it takes no keys: ${error instanceof Error ? error.message : String(error)}`, fix);
    }
  }),
  onSystem("redis.eviction", async ({ deps: { redis } }) => {
    const info = await readRedisInfo(redis);
    const policy = info.get("maxmemory_policy") ?? "unknown";
    const [used, limit] = [Number(info.get("used_memory")), Number(info.get("maxmemory"))];
    const megabytes = (bytes: number) => `${Math.round(bytes / 1024 / 1024)} MB`;
    if (limit === 0) return ok(`no limit of memory, ${megabytes(used)} used`);
    const found = `${policy}, ${megabytes(used)} of ${megabytes(limit)} used`;
    const fix = "redis-cli config set maxmemory-policy volatile-lru, or give it more memory";
    if (policy !== "noeviction" || used < FULL * limit) return ok(found);
    return warn(`${found}: nearly full, and then it takes nothing more`, fix);
  }),
];
