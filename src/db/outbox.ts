import { newId } from "../lib/ids.ts";
import type { Queryable } from "./connect.ts";

/** A mail that waits to be sent. `params` hold ids and names, never a token. */
export interface OutboxMail {
  id: string;
  userId: string | null;
  template: string;
  recipient: string;
  params: Record<string, unknown>;
  /** How often it was claimed, this time included. */
  attempts: number;
  createdAt: Date;
}

type Draft = { template: string; params: Record<string, string | null> };

/** Adds a mail to a user's own address; false when there is no such user. */
export async function insertUserMail(sql: Queryable, input: Draft & { userId: string }): Promise<boolean> {
  const result = await sql`
    insert into outbox (id, user_id, template, recipient, params)
    select ${newId()}::uuid, id, ${input.template}::text, email, ${sql.json(input.params)}::jsonb
    from users where id = ${input.userId}`;
  return result.count === 1;
}

/** Adds a mail to somebody whose rows are going: it does not go with them. */
export async function insertLastMail(sql: Queryable, input: Draft & { recipient: string }): Promise<void> {
  await sql`
    insert into outbox (id, template, recipient, params)
    values (${newId()}, ${input.template}, ${input.recipient}, ${sql.json(input.params)})`;
}

/**
 * Takes one due mail for a while: until then no other process sees it, after that it is due again, whatever became of
 * us. Null when there is none.
 */
export async function claimMail(sql: Queryable, input: { leaseMs: number }): Promise<OutboxMail | null> {
  const [row] = await sql<OutboxMail[]>`
    update outbox set attempts = attempts + 1, next_attempt_at = now() + make_interval(secs => ${input.leaseMs / 1000})
    where id = (
      select id from outbox where dead_at is null and next_attempt_at <= now()
      order by next_attempt_at for update skip locked limit 1)
    returning id, user_id, template, recipient, params, attempts, created_at`;
  return row ?? null;
}

/** It was sent, or nobody needs it any more. */
export async function deleteMail(sql: Queryable, id: string): Promise<void> {
  await sql`delete from outbox where id = ${id}`;
}

/**
 * A claimed mail was not sent: due again after `delayMs`, or dead when that is for good or it is too old. True when
 * dead; then the address of somebody who has no account any more is forgotten. Changes nothing when somebody else has
 * claimed it since.
 */
export async function putMailBack(
  sql: Queryable,
  input: { id: string; attempts: number; error: string; delayMs: number; forGood: boolean; lifetimeSeconds: number },
): Promise<boolean> {
  const isDead = sql`(${input.forGood} or created_at < now() - make_interval(secs => ${input.lifetimeSeconds}))`;
  const [row] = await sql<{ deadAt: Date | null }[]>`
    update outbox set last_error = ${input.error}, next_attempt_at = now() + make_interval(secs => ${input.delayMs / 1000}),
      dead_at = case when ${isDead} then now() end,
      recipient = case when ${isDead} and user_id is null then '' else recipient end
    where id = ${input.id} and attempts = ${input.attempts} and dead_at is null
    returning dead_at`;
  return Boolean(row?.deadAt);
}

/** What waits to be sent and what was given up. */
export async function countMails(sql: Queryable): Promise<{ waiting: number; dead: number }> {
  const [row] = await sql<{ waiting: number; dead: number }[]>`
    select count(*) filter (where dead_at is null)::int as waiting, count(dead_at)::int as dead from outbox`;
  return row!;
}

/** What a mail needs to know about whom it goes to. */
export interface MailReader {
  name: string | null;
  emailVerified: boolean;
  timezone: string;
}

export async function findMailReader(sql: Queryable, userId: string): Promise<MailReader | null> {
  const [row] = await sql<MailReader[]>`select name, email_verified, timezone from users where id = ${userId}`;
  return row ?? null;
}
