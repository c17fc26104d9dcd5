import type { Queryable } from "./connect.ts";

/** What a link in a mail proves, once. */
export type TokenKind = "verify_email" | "reset_password";
type Presented = { id: string; kind: TokenKind; tokenHash: Buffer };

/**
 * Stores a user's token of a kind in the place of the one before, whose link is dead from then on. False for nobody
 * who may have one: no active account, or (to verify an address) one that is verified.
 */
export async function replaceToken(
  sql: Queryable,
  input: Presented & { userId: string; lifetimeSeconds: number },
): Promise<boolean> {
  const result = await sql`
    insert into one_time_tokens (id, user_id, kind, token_hash, expires_at)
    select ${input.id}::uuid, id, ${input.kind}::text, ${input.tokenHash}::bytea,
      now() + make_interval(secs => ${input.lifetimeSeconds})
    from users where id = ${input.userId} and status = 'active' and not (email_verified and ${input.kind} = 'verify_email')
    on conflict (user_id, kind) do update set id = excluded.id, token_hash = excluded.token_hash,
      expires_at = excluded.expires_at, used_at = null, created_at = now()`;
  return result.count === 1;
}

/** Whose living token this is; null for one that is used, expired, superseded, of another kind, or of no active account. */
export async function findToken(sql: Queryable, token: Presented): Promise<{ userId: string; email: string } | null> {
  const [row] = await sql<{ userId: string; email: string }[]>`
    select u.id as user_id, u.email from one_time_tokens t join users u on u.id = t.user_id
    where ${isLiving(sql, token)}`;
  return row ?? null;
}

/** Uses a token up and tells whose it was; null as in `findToken`. Of several at once exactly one gets it. */
export async function consumeToken(sql: Queryable, token: Presented): Promise<string | null> {
  const [row] = await sql<{ userId: string }[]>`
    update one_time_tokens t set used_at = now() from users u where u.id = t.user_id and ${isLiving(sql, token)}
    returning t.user_id`;
  return row?.userId ?? null;
}

const isLiving = (sql: Queryable, { id, kind, tokenHash }: Presented) => sql`
  t.id = ${id} and t.kind = ${kind} and t.token_hash = ${tokenHash} and t.used_at is null and t.expires_at > now()
  and u.status = 'active'`;
