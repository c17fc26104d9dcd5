import { pingDatabase } from "../db/health.ts";
import type { Deps } from "../deps.ts";
import { withDeadline } from "../lib/retry.ts";

type HealthDeps = Pick<Deps, "sql" | "redis" | "gateway">;
const PROBE_MS = 2000;

export interface Health {
  db: boolean;
  redis: boolean;
  gateways: { ready: number; total: number };
  down: string[];
}

/** Asks each service that Reef stands on; `down` names those that do not answer. */
export async function checkHealth(deps: HealthDeps): Promise<Health> {
  const [db, redis] = await Promise.all([works(pingDatabase(deps.sql)), works(deps.redis.ping())]);
  const ready = deps.gateway.isReady();
  const down = [...(db ? [] : ["db"]), ...(redis ? [] : ["redis"]), ...(ready ? [] : [`gateway ${deps.gateway.id}`])];
  return { db, redis, gateways: { ready: Number(ready), total: 1 }, down };
}

async function works(probe: Promise<unknown>): Promise<boolean> {
  return withDeadline(probe, PROBE_MS, "probe").then(
    () => true,
    () => false,
  );
}
