import { Redis } from "ioredis";
import type { Log } from "../lib/log.ts";

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
    retryStrategy: (attempt) => Math.min(2000, 50 * 2 ** Math.min(attempt, 6)),
  });
  let complained = false;
  redis.on("ready", () => (complained = false));
  redis.on("error", (err: Error) => {
    if (!complained) log.warn({ err }, "redis is away; going on without it");
    complained = true;
  });
  return redis;
}
