import { Redis } from "ioredis";
import type { Log } from "../lib/log.ts";

const PING_MS = 3_000;
/** Redis answers in far less; a connection that owes an answer this long is dead, whatever TCP says. */
const SILENT_MS = 5_000;

/**
 * Connects to Redis, for ever again after a loss. Commands fail fast while it is away (each use has a fallback in
 * Postgres or in the process), so nothing waits behind a dead cache.
 */
export function connectRedis(url: string, keyPrefix: string, log: Log): Redis {
  const redis = new Redis(url, {
    keyPrefix,
    maxRetriesPerRequest: 0,
    enableOfflineQueue: false,
    autoResubscribe: true,
    commandTimeout: 1000,
    socketTimeout: SILENT_MS,
    retryStrategy: (attempt) => Math.min(2000, 50 * 2 ** Math.min(attempt, 6)),
  });
  let complained = false;
  redis.on("ready", () => (complained = false));
  redis.on("error", (err: Error) => {
    if (!complained) log.warn({ err }, "redis is away; going on without it");
    complained = true;
  });
  // A subscriber only listens: without asking it would never learn that nobody talks any more.
  const pinger = setInterval(() => void redis.ping().catch(() => undefined), PING_MS);
  redis.on("end", () => clearInterval(pinger));
  return redis;
}
