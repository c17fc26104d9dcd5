import type { Queryable } from "./connect.ts";

/** A gateway as an operator looks at it. Ages in seconds; null: never. */
export interface GatewaySight {
  id: string;
  canaryResult: "ok" | "leak" | "failed" | null;
  canaryAge: number | null;
  placementStopped: boolean;
  seenAge: number | null;
}

export async function listGatewaySights(sql: Queryable): Promise<GatewaySight[]> {
  return sql<GatewaySight[]>`
    select id, canary_result, extract(epoch from now() - canary_at)::float8 as canary_age,
      placement_stopped_reason is not null as placement_stopped,
      extract(epoch from now() - last_seen_at)::float8 as seen_age
    from gateways order by id`;
}

/** A timer's job: its newest run, its newest good one. Ages and durations in seconds; null: there is none. */
export interface JobSight {
  job: string;
  outcome: "running" | "ok" | "failed";
  duration: number | null;
  successAge: number | null;
}

/** Some looks into an index for each job, however many runs there were. */
export async function listJobSights(sql: Queryable): Promise<JobSight[]> {
  const newest = (where: ReturnType<Queryable>) => sql`
    from job_runs r where r.job = n.job and ${where} order by r.started_at desc limit 1`;
  return sql<JobSight[]>`
    with recursive names as (
      (select job from job_runs order by job limit 1)
      union all
      select (select r.job from job_runs r where r.job > n.job order by r.job limit 1) from names n where n.job is not null
    )
    select n.job, last.outcome,
      (select extract(epoch from r.finished_at - r.started_at)::float8 ${newest(sql`r.outcome in ('ok', 'failed')`)}) as duration,
      (select extract(epoch from now() - r.finished_at)::float8 ${newest(sql`r.outcome = 'ok'`)}) as success_age
    from names n cross join lateral (select r.outcome ${newest(sql`r.outcome <> 'skipped'`)}) last
    where n.job is not null`;
}

/** How many alarms are not over, by severity. */
export async function countOpenAlarms(sql: Queryable): Promise<{ warning: number; critical: number }> {
  const [row] = await sql<{ warning: number; critical: number }[]>`
    select count(*) filter (where severity = 'warning')::int as warning,
      count(*) filter (where severity = 'critical')::int as critical
    from alarms where resolved_at is null`;
  return row!;
}

/** Assistants that are to be configured on a gateway, and that it does not have yet as their rows say. */
export async function listLagging(sql: Queryable, gatewayId: string): Promise<string[]> {
  const rows = await sql<{ id: string }[]>`
    select id from assistants
    where gateway_id = ${gatewayId} and (state = 'waking' or (state = 'awake' and applied_generation < generation))`;
  return rows.map(({ id }) => id);
}
