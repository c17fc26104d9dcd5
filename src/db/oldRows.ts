import type { Queryable } from "./connect.ts";

/*
 * Rows that nobody needs any more. Each statement takes at most `limit` of them and passes over what somebody else has
 * locked, so that it holds up nobody, may run beside itself and may be cut off anywhere. They tell how many are gone.
 */
type Batch = { limit: number };

/** Links that can't be used any more. */
export async function deleteOldTokens(sql: Queryable, { limit }: Batch): Promise<number> {
  const result = await sql`
    delete from one_time_tokens where id in (
      select id from one_time_tokens where expires_at < now() or used_at is not null
      limit ${limit} for update skip locked)`;
  return result.count;
}

/**
 * Devices whose tokens ran out so many days ago, whether they were signed out or not. Until a token runs out, its row
 * tells a stolen or signed-out one from one that is none of ours. Each user keeps the newest row: whoever comes back after a
 * year from another device is told of it (services/knownDevices.ts).
 */
export async function deleteOldSessions(sql: Queryable, input: Batch & { days: number }): Promise<number> {
  const result = await sql`
    delete from refresh_tokens where (id, user_id) in (
      select o.id, o.user_id from refresh_tokens o
      where o.expires_at < now() - make_interval(days => ${input.days}) and exists (
        select 1 from refresh_tokens n
        where n.user_id = o.user_id and (n.last_used_at, n.id) > (o.last_used_at, o.id))
      limit ${input.limit} for update of o skip locked)`;
  return result.count;
}

/** Kept answers to repeated requests. A claim forgets some (db/idempotency.ts); where nobody claims, nothing else does. */
export async function deleteOldIdempotencyKeys(sql: Queryable, { limit }: Batch): Promise<number> {
  const result = await sql`
    delete from idempotency_keys where (user_id, key) in (
      select user_id, key from idempotency_keys where created_at < now() - interval '24 hours'
      order by created_at limit ${limit} for update skip locked)`;
  return result.count;
}

/** Exports that count no more. A user's next export forgets theirs (db/exports.ts); many people export once. */
export async function deleteOldExports(sql: Queryable, { limit }: Batch): Promise<number> {
  const result = await sql`
    delete from exports where (id, user_id) in (
      select id, user_id from exports where started_at <= now() - interval '1 hour' and lease_until <= now()
      limit ${limit} for update skip locked)`;
  return result.count;
}

/** Mails that were given up so many days ago: the operator has had time to look at them. What was sent is gone already. */
export async function deleteDeadMails(sql: Queryable, input: Batch & { days: number }): Promise<number> {
  const result = await sql`
    delete from outbox where id in (
      select id from outbox where dead_at < now() - make_interval(days => ${input.days})
      limit ${input.limit} for update skip locked)`;
  return result.count;
}

/** Runs of jobs, but for each job's newest of each outcome: "it has not gone well since" is to be seen for ever. */
export async function deleteOldJobRuns(sql: Queryable, input: Batch & { days: number }): Promise<number> {
  const result = await sql`
    delete from job_runs where id in (
      select o.id from job_runs o
      where o.started_at < now() - make_interval(days => ${input.days}) and exists (
        select 1 from job_runs n where n.job = o.job and n.outcome = o.outcome and n.started_at > o.started_at)
      limit ${input.limit} for update of o skip locked)`;
  return result.count;
}

/** Alarms that were over so many days ago. */
export async function deleteOldAlarms(sql: Queryable, input: Batch & { days: number }): Promise<number> {
  const result = await sql`
    delete from alarms where key in (
      select key from alarms where resolved_at < now() - make_interval(days => ${input.days})
      limit ${input.limit} for update skip locked)`;
  return result.count;
}

/** Audited acts older than so many days. */
export async function deleteOldAudits(sql: Queryable, input: Batch & { days: number }): Promise<number> {
  const result = await sql`
    delete from audit_log where id in (
      select id from audit_log where at < now() - make_interval(days => ${input.days})
      order by at limit ${input.limit} for update skip locked)`;
  return result.count;
}
