import type { Queryable } from "./connect.ts";
import { notify } from "./notify.ts";

/** An event that this process may work at until its lease ends. */
export interface ClaimedEvent {
  id: string;
  type: string;
  customerId: string | null;
  objectId: string | null;
  /** How often it was claimed, this time included. */
  attempts: number;
}

/**
 * Stores an event, once: its id is the key. `outcome`: it is done with by being stored; null: it waits, and its readers
 * are told. False when it is known.
 */
export async function insertEvent(
  sql: Queryable,
  event: {
    id: string;
    type: string;
    customerId: string | null;
    objectId: string | null;
    createdAt: Date;
    outcome: string | null;
  },
): Promise<boolean> {
  const result = await sql`
    insert into stripe_events (id, type, customer_id, object_id, created_at, outcome, processed_at)
    values (${event.id}, ${event.type}, ${event.customerId}, ${event.objectId}, ${event.createdAt}, ${event.outcome},
      case when ${event.outcome}::text is not null then now() end)
    on conflict (id) do nothing`;
  if (result.count === 0) return false;
  if (event.outcome === null) await notify(sql, "stripe", event.id);
  return true;
}

/**
 * Takes due events of so many customers for a while: until then no other process sees them, after that they are due
 * again, whatever became of us. `except`: customers that are being worked at here.
 */
export async function claimEvents(
  sql: Queryable,
  input: { leaseMs: number; customers: number; limit: number; except: string[] },
): Promise<ClaimedEvent[]> {
  return sql<ClaimedEvent[]>`
    with next as (
      select coalesce(customer_id, id) as who from stripe_events
      where processed_at is null and next_attempt_at <= now()
        and (customer_id is null or customer_id <> all(${input.except}::text[]))
      group by 1 order by min(next_attempt_at) limit ${input.customers}
    )
    update stripe_events set attempts = attempts + 1, next_attempt_at = now() + make_interval(secs => ${input.leaseMs / 1000})
    where id in (
      select id from stripe_events
      where processed_at is null and next_attempt_at <= now() and coalesce(customer_id, id) in (select who from next)
      order by next_attempt_at limit ${input.limit} for update skip locked)
    returning id, type, customer_id, object_id, attempts`;
}

/** Events are done with; those of them that were not before. */
export async function finishEvents(
  sql: Queryable,
  input: { ids: string[]; customerId: string | null; outcome: string },
): Promise<{ id: string; type: string; objectId: string | null }[]> {
  return sql<{ id: string; type: string; objectId: string | null }[]>`
    update stripe_events set processed_at = now(), outcome = ${input.outcome}, last_error = null,
      customer_id = coalesce(customer_id, ${input.customerId})
    where id in (select id from stripe_events where id = any(${input.ids}) and processed_at is null order by id for update)
    returning id, type, object_id`;
}

/** An event could not be worked at: due again after `delayMs`. `error` has no secrets; null: it did not fail. */
export async function putEventBack(
  sql: Queryable,
  input: { id: string; attempts: number; error: string | null; delayMs: number },
): Promise<void> {
  await sql`
    update stripe_events set last_error = coalesce(${input.error}, last_error),
      attempts = attempts - ${input.error === null ? 1 : 0}::int,
      next_attempt_at = now() + make_interval(secs => ${input.delayMs / 1000})
    where id = ${input.id} and attempts = ${input.attempts} and processed_at is null`;
}

/** What waits, what of it has failed before, and since when the oldest waits, in seconds. */
export async function countEvents(sql: Queryable): Promise<{ waiting: number; failed: number; oldestSeconds: number }> {
  const [row] = await sql<{ waiting: number; failed: number; oldestSeconds: number }[]>`
    select count(*)::int as waiting, count(last_error)::int as failed,
      coalesce(extract(epoch from now() - min(received_at)), 0)::float8 as oldest_seconds
    from stripe_events where processed_at is null`;
  return row!;
}

/** Forgets what was done with so long ago; how many it were. One that comes again is only one more hint. */
export async function deleteOldEvents(sql: Queryable, input: { days: number }): Promise<number> {
  const result = await sql`
    delete from stripe_events
    where processed_at is not null and received_at < now() - make_interval(days => ${input.days})`;
  return result.count;
}
