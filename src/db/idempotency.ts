import type { Queryable } from "./connect.ts";

/** More than one claim adds, so that they don't pile up. */
const FORGET_AT_ONCE = 20;

interface IdempotencyRow {
  requestHash: Buffer;
  status: number | null;
  response: string | null;
}

/**
 * Claims a key for a request that begins: since when it is ours, or null when it exists already. Keys live 24 hours; each
 * claim forgets some older ones, whosever they are: answers hold messages' texts.
 */
export async function claimIdempotencyKey(
  sql: Queryable,
  input: { userId: string; key: string; requestHash: Buffer },
): Promise<Date | null> {
  const [row] = await sql<{ createdAt: Date }[]>`
    with old as (
      delete from idempotency_keys where (user_id, key) in (
        select user_id, key from idempotency_keys
        where created_at < now() - interval '24 hours' and (user_id, key) <> (${input.userId}::uuid, ${input.key}::text)
        order by created_at limit ${FORGET_AT_ONCE} for update skip locked))
    insert into idempotency_keys (user_id, key, request_hash) values (${input.userId}, ${input.key}, ${input.requestHash})
    on conflict (user_id, key) do update
      set request_hash = excluded.request_hash, status = null, response = null, claimed_at = now(), created_at = now()
      where idempotency_keys.created_at < now() - interval '24 hours'
    returning created_at`;
  return row?.createdAt ?? null;
}

/** Takes over a claim that was given back or whose process seems to have died: one taker only. It keeps its time. */
export async function retakeIdempotencyKey(
  sql: Queryable,
  input: { userId: string; key: string; staleSeconds: number },
): Promise<Date | null> {
  const [row] = await sql<{ createdAt: Date }[]>`
    update idempotency_keys set claimed_at = now()
    where user_id = ${input.userId} and key = ${input.key} and status is null
      and claimed_at < now() - make_interval(secs => ${input.staleSeconds})
    returning created_at`;
  return row?.createdAt ?? null;
}

export async function findIdempotencyKey(
  sql: Queryable,
  input: { userId: string; key: string },
): Promise<IdempotencyRow | null> {
  const [row] = await sql<IdempotencyRow[]>`
    select request_hash, status, response from idempotency_keys where user_id = ${input.userId} and key = ${input.key}`;
  return row ?? null;
}

/** Keeps the first answer of a key; false: there is one already. */
export async function saveIdempotentAnswer(
  sql: Queryable,
  input: { userId: string; key: string; status: number; response: string | null },
): Promise<boolean> {
  const rows = await sql`
    update idempotency_keys set status = ${input.status}, response = ${input.response}
    where user_id = ${input.userId} and key = ${input.key} and status is null returning 1`;
  return rows.length > 0;
}

/** Gives a key back after a request that failed on our side: the same request may be tried again, under the same claim. */
export async function releaseIdempotencyKey(sql: Queryable, input: { userId: string; key: string }): Promise<void> {
  await sql`
    update idempotency_keys set claimed_at = '-infinity'
    where user_id = ${input.userId} and key = ${input.key} and status is null`;
}
