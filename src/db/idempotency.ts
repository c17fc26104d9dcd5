import type { Queryable } from "./connect.ts";

interface IdempotencyRow {
  requestHash: Buffer;
  status: number | null;
  response: string | null;
}

/** Claims a key for a request that begins. True: ours to run; false: it exists already. Keys live 24 hours. */
export async function claimIdempotencyKey(
  sql: Queryable,
  input: { userId: string; key: string; requestHash: Buffer },
): Promise<boolean> {
  const result = await sql`
    insert into idempotency_keys (user_id, key, request_hash) values (${input.userId}, ${input.key}, ${input.requestHash})
    on conflict (user_id, key) do update
      set request_hash = excluded.request_hash, status = null, response = null, claimed_at = now(), created_at = now()
      where idempotency_keys.created_at < now() - interval '24 hours'`;
  return result.count === 1;
}

/** Takes over a claim whose process seems to have died: one taker only. */
export async function retakeIdempotencyKey(
  sql: Queryable,
  input: { userId: string; key: string; staleSeconds: number },
): Promise<boolean> {
  const result = await sql`
    update idempotency_keys set claimed_at = now()
    where user_id = ${input.userId} and key = ${input.key} and status is null
      and claimed_at < now() - make_interval(secs => ${input.staleSeconds})`;
  return result.count === 1;
}

export async function findIdempotencyKey(
  sql: Queryable,
  input: { userId: string; key: string },
): Promise<IdempotencyRow | null> {
  const [row] = await sql<IdempotencyRow[]>`
    select request_hash, status, response from idempotency_keys where user_id = ${input.userId} and key = ${input.key}`;
  return row ?? null;
}

/** Keeps the first answer of a key. */
export async function saveIdempotentAnswer(
  sql: Queryable,
  input: { userId: string; key: string; status: number; response: string | null },
): Promise<void> {
  await sql`
    update idempotency_keys set status = ${input.status}, response = ${input.response}
    where user_id = ${input.userId} and key = ${input.key} and status is null`;
}

/** Gives a key back after a request that failed on our side: it may be tried again. */
export async function releaseIdempotencyKey(sql: Queryable, input: { userId: string; key: string }): Promise<void> {
  await sql`delete from idempotency_keys where user_id = ${input.userId} and key = ${input.key} and status is null`;
}
