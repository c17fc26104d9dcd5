import type { Queryable } from "./connect.ts";

/** Makes sure that the configured gateway has its row. */
export async function registerGateway(sql: Queryable, gateway: { id: string; workingSet: number }): Promise<void> {
  await sql`
    insert into gateways (id, working_set) values (${gateway.id}, ${gateway.workingSet})
    on conflict (id) do update set working_set = excluded.working_set`;
}

/** Where a new assistant goes: the active gateway with the fewest, unless something is wrong with it (the canary). */
export async function findPlacement(sql: Queryable): Promise<string | null> {
  const [row] = await sql<{ id: string }[]>`
    select g.id from gateways g where g.status = 'active' and g.placement_stopped_reason is null
    order by (select count(*) from assistants a where a.gateway_id = g.id and a.status <> 'deleted'), g.id limit 1`;
  return row?.id ?? null;
}

/** What Reef wrote into the gateway's configuration last, and which process of the gateway it was for. */
export async function findWrittenConfig(
  sql: Queryable,
  id: string,
): Promise<{ writtenHash: string | null; bootId: string | null }> {
  const [row] = await sql<{ writtenHash: string | null; bootId: string | null }[]>`
    select written_hash, boot_id from gateways where id = ${id}`;
  return row ?? { writtenHash: null, bootId: null };
}

/** Records a configuration before it is written. */
export async function recordWrittenConfig(sql: Queryable, id: string, writtenHash: string): Promise<void> {
  await sql`update gateways set written_hash = ${writtenHash} where id = ${id}`;
}

/** What the reconciler saw: which process of the gateway runs, and which configuration it has applied. */
export async function recordGateway(
  sql: Queryable,
  seen: { id: string; version: string; bootId: string; appliedHash: string; driftRepairs: number },
): Promise<void> {
  await sql`
    update gateways set version = ${seen.version}, boot_id = ${seen.bootId}, applied_hash = ${seen.appliedHash},
      drift_repairs = drift_repairs + ${seen.driftRepairs}, last_seen_at = now()
    where id = ${seen.id}`;
}
