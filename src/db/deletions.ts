import { newId } from "../lib/ids.ts";
import type { Queryable } from "./connect.ts";
import { keepDepartedUsage } from "./costs.ts";
import { notify } from "./notify.ts";

/** The steps in their order; the row names the one that is to be done next. */
export const DELETION_STEPS = ["subscription", "provider", "agents", "rows", "redis", "mail", "done"] as const;
export type DeletionStep = (typeof DELETION_STEPS)[number];

/** A deletion that this process may work at until its lease ends. */
export interface Deletion {
  userId: string;
  step: DeletionStep;
  recipient: string | null;
  /** Encrypted by the application, hex. */
  providerTokens: { provider: "apple" | "google"; token: string }[];
  turnIds: string[];
  /** How often this step has failed. */
  attempts: number;
}

const columns = (sql: Queryable) => sql`d.user_id, d.step, d.recipient, d.provider_tokens, d.turn_ids, d.attempts`;

/**
 * The account is leaving: nobody signs in to it any more, its address and its Apple and Google accounts are free at
 * once, and the row of its deletion has what the steps need. Null when it was not active. The placeholder holds a new
 * id: nobody can have taken it before.
 */
export async function beginDeletion(sql: Queryable, userId: string): Promise<{ recipient: string } | null> {
  const [begun] = await sql<{ recipient: string }[]>`
    with old as (select id, email from users where id = ${userId} and status = 'active' for update),
    leaving as (
      update users u set status = 'deleting', email = ${`deleted-${newId()}@deleted.invalid`}, password_hash = null,
        updated_at = now()
      from old where u.id = old.id)
    insert into account_deletions (user_id, recipient, provider_tokens, turn_ids)
    select id, email,
      (select coalesce(jsonb_agg(jsonb_build_object('provider', provider, 'token', encode(provider_token, 'hex'))), '[]')
        from identities where user_id = ${userId} and provider_token is not null),
      (select coalesce(array_agg(t.id), '{}') from turns t where t.user_id = ${userId}
        and coalesce(t.finished_at, now()) > now() - interval '2 hours')
    from old returning recipient`;
  if (!begun) return null;
  await sql`delete from identities where user_id = ${userId}`;
  await sql`delete from outbox where user_id = ${userId}`;
  await notify(sql, "deletion", userId);
  return begun;
}

/** Links in mails that were sent to the person are dead. */
export async function deleteOneTimeTokens(sql: Queryable, userId: string): Promise<void> {
  await sql`delete from one_time_tokens where user_id = ${userId}`;
}

/** Takes deletions that are due, for `leaseMs`. One that waits for the purge of its assistants is due when that is done. */
export async function claimDeletions(
  sql: Queryable,
  input: { leaseMs: number; limit: number; except: string[] },
): Promise<Deletion[]> {
  return sql<Deletion[]>`
    update account_deletions d set next_attempt_at = now() + make_interval(secs => ${input.leaseMs / 1000})
    where d.user_id in (
      select o.user_id from account_deletions o
      where o.finished_at is null and o.next_attempt_at <= now() and o.user_id <> all(${input.except}::uuid[])
        and (o.step <> 'agents' or not exists (
          select 1 from assistants a where a.user_id = o.user_id and a.purge_step in ('stopping', 'erasing')))
      order by o.next_attempt_at limit ${input.limit} for update skip locked)
    returning ${columns(sql)}`;
}

/** Records that a step is done, once; null when another process was faster. Renews the lease. */
export async function advanceDeletion(
  sql: Queryable,
  input: { userId: string; from: DeletionStep; to: DeletionStep; leaseMs: number },
): Promise<Deletion | null> {
  const [row] = await sql<Deletion[]>`
    update account_deletions d set step = ${input.to}, attempts = 0, last_error = null,
      next_attempt_at = now() + make_interval(secs => ${input.leaseMs / 1000}),
      provider_tokens = case when ${input.from} = 'provider' then '[]' else d.provider_tokens end,
      turn_ids = case when ${input.from} = 'redis' then '{}' else d.turn_ids end
    where d.user_id = ${input.userId} and d.step = ${input.from}
    returning ${columns(sql)}`;
  return row ?? null;
}

/** Lets go of a deletion that waits (`retryMs` 0), or that failed and is tried again later. `error` has no secrets. */
export async function releaseDeletion(
  sql: Queryable,
  input: { userId: string; step: DeletionStep; retryMs: number; error: string | null },
): Promise<void> {
  await sql`
    update account_deletions set next_attempt_at = now() + make_interval(secs => ${input.retryMs / 1000}),
      attempts = attempts + ${input.error === null ? 0 : 1}, last_error = ${input.error}
    where user_id = ${input.userId} and step = ${input.step}`;
}

/** What Stripe may know of a user. */
export interface StripeTraces {
  customerId: string | null;
  /** One that lived when it was last fetched. */
  subscriptionId: string | null;
  /** Something was being done there and it was not seen how that ended, or the customer is gone: there may be another. */
  cutOff: boolean;
  /** Whether somebody may have to pay for something. */
  costs: boolean;
}

/** Null: it never heard of them. */
export async function findStripeTraces(sql: Queryable, userId: string): Promise<StripeTraces | null> {
  const [row] = await sql<StripeTraces[]>`
    select c.customer_id, s.stripe_subscription_id as subscription_id, l.user_id is not null or c.gone_at is not null as cut_off,
      s.stripe_subscription_id is not null or coalesce(c.checkout_expires_at > now(), false) as costs
    from (select ${userId}::uuid as id) u
    left join stripe_customers c on c.user_id = u.id
    left join stripe_leases l on l.user_id = u.id
    left join subscriptions s on s.user_id = u.id and s.source = 'stripe'
      and s.status not in ('canceled', 'incomplete_expired')
    where c.user_id is not null or l.user_id is not null or s.user_id is not null`;
  return row ?? null;
}

/** How many of the user's assistants live, and how many have not been purged. */
export async function countAssistantsLeft(
  sql: Queryable,
  userId: string,
): Promise<{ living: string[]; unpurged: number }> {
  const [row] = await sql<{ living: string[]; unpurged: number }[]>`
    select coalesce(array_agg(id) filter (where status <> 'deleted'), '{}') as living,
      count(*) filter (where purge_step is distinct from 'purged') as unpurged
    from assistants where user_id = ${userId}`;
  return row!;
}

/** Locks a user's row: nothing of theirs can be added until the transaction ends. */
export async function lockLeavingUser(sql: Queryable, userId: string): Promise<void> {
  await sql`select 1 from users where id = ${userId} for update`;
}

/**
 * Erases every row of a user. What is audited stays, with ids only. Call it in the transaction that records the step,
 * after `lockLeavingUser`, when all assistants are purged.
 */
export async function deleteUserRows(sql: Queryable, userId: string): Promise<void> {
  await sql`delete from messages where user_id = ${userId}`;
  await sql`delete from turns where user_id = ${userId}`;
  await sql`delete from assistants where user_id = ${userId}`;
  await keepDepartedUsage(sql, userId);
  await sql`delete from usage_logs where user_id = ${userId}`;
  await sql`delete from daily_usage where user_id = ${userId}`;
  await sql`delete from idempotency_keys where user_id = ${userId}`;
  await sql`delete from subscriptions where user_id = ${userId}`;
  await sql`delete from stripe_customers where user_id = ${userId}`;
  await sql`delete from stripe_leases where user_id = ${userId}`;
  await sql`delete from one_time_tokens where user_id = ${userId}`;
  await sql`delete from identities where user_id = ${userId}`;
  await sql`delete from outbox where user_id = ${userId}`;
  await sql`delete from refresh_tokens where user_id = ${userId}`;
  await sql`delete from users where id = ${userId}`;
  await sql`update audit_log set ip = null, details = '{}' where subject_user_id = ${userId}`;
}

/** The end: only the fact that this id was deleted, and when, is left. False when it was over before. */
export async function finishDeletion(sql: Queryable, userId: string): Promise<boolean> {
  const result = await sql`
    update account_deletions set step = 'done', finished_at = now(), recipient = null, provider_tokens = '[]',
      turn_ids = '{}', attempts = 0, last_error = null
    where user_id = ${userId} and step = 'mail'`;
  return result.count === 1;
}

/** How a deletion stands, for operators. */
export async function findDeletion(
  sql: Queryable,
  userId: string,
): Promise<{ step: DeletionStep; attempts: number; lastError: string | null; requestedAt: Date } | null> {
  const [row] = await sql<{ step: DeletionStep; attempts: number; lastError: string | null; requestedAt: Date }[]>`
    select step, attempts, last_error, requested_at from account_deletions where user_id = ${userId}`;
  return row ?? null;
}

/** Unfinished deletions, and those of them that were asked for more than an hour ago. */
export async function countDeletions(sql: Queryable): Promise<{ unfinished: number; late: number }> {
  const [row] = await sql<{ unfinished: number; late: number }[]>`
    select count(*) as unfinished, count(*) filter (where requested_at < now() - interval '1 hour') as late
    from account_deletions where finished_at is null`;
  return row!;
}
