import type { Queryable } from "./connect.ts";

export type JobOutcome = "ok" | "failed" | "skipped";
/** What a job counted: numbers, ids and names, never a person's text. */
export type JobDetails = Record<string, string | number | boolean | null | string[]>;

/** A run of a job as it is recorded; `finishedAt` null: it runs, or its process died. */
export interface JobRun {
  id: string;
  job: string;
  host: string;
  startedAt: Date;
  finishedAt: Date | null;
  outcome: JobOutcome | "running";
  summary: string | null;
  details: JobDetails;
}

/** Records that a run has begun. */
export async function insertJobRun(sql: Queryable, run: { id: string; job: string; host: string }): Promise<void> {
  await sql`insert into job_runs (id, job, host) values (${run.id}, ${run.job}, ${run.host})`;
}

/** Records how a run ended; a run that has ended stays as it is. */
export async function finishJobRun(
  sql: Queryable,
  run: { id: string; outcome: JobOutcome; summary: string; details: JobDetails },
): Promise<void> {
  await sql`
    update job_runs set finished_at = now(), outcome = ${run.outcome}, summary = ${run.summary},
      details = ${sql.json(run.details)}
    where id = ${run.id} and finished_at is null`;
}

/** The newest run of each job, and the newest one that went well: some looks into an index for each, however many runs there were. */
export async function listNewestRuns(sql: Queryable): Promise<{ job: string; last: JobRun; lastOkAt: Date | null }[]> {
  const rows = await sql<(JobRun & { lastOkAt: Date | null })[]>`
    with recursive names as (
      (select job from job_runs order by job limit 1)
      union all
      select (select r.job from job_runs r where r.job > n.job order by r.job limit 1) from names n where n.job is not null
    )
    select last.*, (
      select o.finished_at from job_runs o
      where o.job = n.job and o.outcome = 'ok' order by o.started_at desc limit 1) as last_ok_at
    from names n cross join lateral (
      select * from job_runs r where r.job = n.job and r.outcome <> 'skipped' order by r.started_at desc limit 1) last
    where n.job is not null order by n.job`;
  return rows.map(({ lastOkAt, ...last }) => ({ job: last.job, last, lastOkAt }));
}

/** The newest run that left a whole backup (a failure of the second place leaves one), drill, and drill that went well. */
export async function findBackupRuns(
  sql: Queryable,
): Promise<{ backup: JobRun | null; drill: JobRun | null; verified: JobRun | null }> {
  const [backup] = await sql<JobRun[]>`
    select * from job_runs where job = 'backup' and details @> '{"local": true}' order by started_at desc limit 1`;
  const [drill] = await sql<JobRun[]>`
    select * from job_runs where job = 'verify-backup' and finished_at is not null order by started_at desc limit 1`;
  const [verified] = await sql<JobRun[]>`
    select * from job_runs where job = 'verify-backup' and outcome = 'ok' order by started_at desc limit 1`;
  return { backup: backup ?? null, drill: drill ?? null, verified: verified ?? null };
}
