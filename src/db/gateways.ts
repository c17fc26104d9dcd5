import type { Queryable } from "./connect.ts";

/** A gateway that no process has been connected to for this long is away: its host, its engine, or itself. */
const AWAY_SECONDS = 60;
export const isSeen = (sql: Queryable) =>
  sql`coalesce(g.last_seen_at > now() - make_interval(secs => ${AWAY_SECONDS}), false)`;
/** Deleted ones, too, until they are erased: that is done there and nowhere else. */
const livesOn = (sql: Queryable) => sql`a.gateway_id = g.id and a.purge_step is distinct from 'purged'`;
const assistantsOf = (sql: Queryable) => sql`(select count(*)::int from assistants a where ${livesOn(sql)})`;

/** Makes sure that the configured gateway has its row. */
export async function registerGateway(
  sql: Queryable,
  gateway: { id: string; workingSet: number; filesUrl: string | null; folder: string },
): Promise<void> {
  const { id, workingSet, filesUrl, folder } = gateway;
  await sql`
    insert into gateways (id, working_set, files_url, folder) values (${id}, ${workingSet}, ${filesUrl}, ${folder})
    on conflict (id) do update set
      working_set = excluded.working_set, files_url = excluded.files_url, folder = excluded.folder`;
}

/** A process is connected to the gateway now. */
export async function touchGateway(sql: Queryable, id: string): Promise<void> {
  await sql`update gateways set last_seen_at = now() where id = ${id}`;
}

/**
 * Where a new assistant goes, for good: an active gateway, one that is there before one that is away, one that went a
 * moment ago (a restart) before one that is long gone, the one with the fewest.
 */
export async function findPlacement(sql: Queryable): Promise<string | null> {
  const [row] = await sql<{ id: string }[]>`
    select g.id from gateways g where g.status = 'active' and g.placement_stopped_reason is null
    order by ${isSeen(sql)} desc, coalesce(g.last_seen_at > now() - interval '1 hour', false) desc, ${assistantsOf(sql)}, g.id
    limit 1`;
  return row?.id ?? null;
}

/** Where a gateway's folder is served, and where it lies there; null: it can't be reached from other hosts. */
export async function findServedFolder(sql: Queryable, id: string): Promise<{ url: string; dir: string } | null> {
  const [row] = await sql<{ url: string; dir: string }[]>`
    select files_url as url, folder as dir from gateways where id = ${id} and files_url is not null and folder is not null`;
  return row ?? null;
}

/** A gateway as operators see it. */
export interface GatewayRow {
  id: string;
  status: "active" | "draining" | "down";
  placementStoppedReason: string | null;
  filesUrl: string | null;
  version: string | null;
  lastSeenAt: Date | null;
  /** Whether a process is connected to it. */
  seen: boolean;
  assistants: number;
  queued: number;
}

export async function listGateways(sql: Queryable): Promise<GatewayRow[]> {
  return sql<GatewayRow[]>`
    select g.id, g.status, g.placement_stopped_reason, g.files_url, g.version, g.last_seen_at, ${isSeen(sql)} as seen,
      ${assistantsOf(sql)} as assistants,
      (select count(*)::int from turns t where t.gateway_id = g.id and t.status = 'queued') as queued
    from gateways g order by g.id`;
}

/** Somebody may need it: it gets assistants, has some, or has yet to erase some. */
const isNeeded = (sql: Queryable) => sql`(g.status = 'active'
  or exists (select 1 from assistants a where ${livesOn(sql)}))`;

/** Every gateway that somebody may need. */
export async function listNeededGateways(sql: Queryable): Promise<{ id: string; seen: boolean }[]> {
  return sql<{ id: string; seen: boolean }[]>`
    select g.id, ${isSeen(sql)} as seen from gateways g where ${isNeeded(sql)} order by g.id`;
}

/** When the newest whole backup that has the gateway's folder was begun; without one, when the gateway came. */
export interface GatewayBackup {
  gatewayId: string;
  since: Date;
  exists: boolean;
}

/** The backup of each gateway that somebody may need: each is made by the host that has the folder. */
export async function listGatewayBackups(sql: Queryable): Promise<GatewayBackup[]> {
  return sql<GatewayBackup[]>`
    select g.id as gateway_id, coalesce(b.started_at, g.created_at) as since, b.started_at is not null as exists
    from gateways g left join lateral (
      select r.started_at from job_runs r
      where r.job = 'backup' and r.details @> jsonb_build_object('local', true, 'gateways', jsonb_build_array(g.id))
      order by r.started_at desc limit 1) b on true
    where ${isNeeded(sql)} order by g.id`;
}

/** Null when there is no such gateway. */
export async function setGatewayStatus(
  sql: Queryable,
  input: { id: string; status: "active" | "draining" },
): Promise<{ changed: boolean } | null> {
  const [before] = await sql<{ status: string }[]>`select status from gateways where id = ${input.id} for update`;
  if (!before) return null;
  await sql`update gateways set status = ${input.status} where id = ${input.id}`;
  return { changed: before.status !== input.status };
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
