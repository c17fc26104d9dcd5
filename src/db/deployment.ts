import type { Queryable } from "./connect.ts";

/** When the first migration was applied: how old the deployment is. */
export async function findDeployedAt(sql: Queryable): Promise<Date | null> {
  const [row] = await sql<{ at: Date | null }[]>`select min(applied_at) as at from schema_migrations`;
  return row?.at ?? null;
}

/** Running turns whose lease ran out longer ago than `graceMs`: nobody took them up. */
export async function countStaleLeases(sql: Queryable, graceMs: number): Promise<number> {
  const [row] = await sql<{ n: number }[]>`
    select count(*)::int as n from turns
    where status in ('dispatched', 'streaming') and lease_until < now() - make_interval(secs => ${graceMs / 1000})`;
  return row?.n ?? 0;
}

/** How the database stands. `transactionTimeout` null: this Postgres has no such setting. */
export interface DatabaseState {
  versionNumber: number;
  bytes: number;
  maxConnections: number;
  reservedConnections: number;
  connections: number;
  transactionTimeout: string | null;
}

/** Reads how the database stands; not the number of connections of others where we may not see them. */
export async function readDatabaseState(sql: Queryable): Promise<DatabaseState> {
  const [row] = await sql<DatabaseState[]>`
    select current_setting('server_version_num')::int as version_number, pg_database_size(current_database()) as bytes,
      current_setting('max_connections')::int as max_connections,
      current_setting('superuser_reserved_connections')::int as reserved_connections,
      (select count(*)::int from pg_stat_activity where backend_type = 'client backend') as connections,
      current_setting('transaction_timeout', true) as transaction_timeout`;
  return row!;
}

/** How a gateway stands by its row; null where it has none. */
export async function findGatewayState(sql: Queryable, id: string): Promise<GatewayState | null> {
  const [row] = await sql<GatewayState[]>`
    select status, placement_stopped_reason, canary_result, canary_at,
      (select count(*)::int from assistants a where a.gateway_id = g.id and a.state in ('waking', 'awake')) as awake,
      (select count(*)::int from assistants a
        where a.gateway_id = g.id and a.state = 'failed' and a.status = 'active') as failed
    from gateways g where id = ${id}`;
  return row ?? null;
}

export interface GatewayState {
  status: "active" | "draining" | "down";
  placementStoppedReason: string | null;
  canaryResult: "ok" | "leak" | "failed" | null;
  canaryAt: Date | null;
  awake: number;
  failed: number;
}
