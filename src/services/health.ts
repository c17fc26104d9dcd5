import { listNeededGateways } from "../db/gateways.ts";
import { pingDatabase } from "../db/health.ts";
import type { Deps } from "../deps.ts";
import { withDeadline } from "../lib/retry.ts";

type HealthDeps = Pick<Deps, "sql" | "redis" | "gateway" | "config">;
const PROBE_MS = 2000;

export interface Health {
  db: boolean;
  redis: boolean;
  gateways: { ready: number; total: number };
  down: string[];
  /** What this process can't do without. */
  missing: string[];
}

/**
 * Asks each service that Reef stands on; `down` names those that do not answer. Gateways of other processes are known by
 * what those said of them last. Without its own gateway a process still has sockets for people of another one, so it is
 * `missing` only where there is no other; a front process has none to miss.
 */
export async function checkHealth(deps: HealthDeps): Promise<Health> {
  const front = deps.config.ROLE === "front";
  const own = { id: deps.gateway.id, seen: deps.gateway.isReady() };
  const [db, redis, listed] = await Promise.all([
    works(pingDatabase(deps.sql)),
    works(deps.redis.ping()),
    withDeadline(listNeededGateways(deps.sql), PROBE_MS, "probe").catch(() => []),
  ]);
  const others = listed.filter(({ id }) => id !== own.id);
  const gateways = front ? others : [own, ...others];
  const seen = gateways.filter((gateway) => gateway.seen);
  const away = gateways.filter((gateway) => !gateway.seen).map(({ id }) => `gateway ${id}`);
  const noDb = db ? [] : ["db"];
  return {
    db,
    redis,
    gateways: { ready: seen.length, total: gateways.length },
    down: [...noDb, ...(redis ? [] : ["redis"]), ...away],
    missing: [...noDb, ...(front || seen.length > 0 ? [] : [`gateway ${own.id}`])],
  };
}

async function works(probe: Promise<unknown>): Promise<boolean> {
  return withDeadline(probe, PROBE_MS, "probe").then(
    () => true,
    () => false,
  );
}
