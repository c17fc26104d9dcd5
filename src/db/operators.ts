import type { Queryable } from "./connect.ts";

/** An operator's token, without its hash. */
export interface OperatorToken {
  id: string;
  name: string;
  createdAt: Date;
  lastUsedAt: Date | null;
  revokedAt: Date | null;
}

const columns = (sql: Queryable) => sql`id, name, created_at, last_used_at, revoked_at`;

/** Adds a token; false when the name was ever used (the audit log names operators by it). `tokenHash` is SHA-256. */
export async function createOperatorToken(
  sql: Queryable,
  input: { id: string; name: string; tokenHash: Buffer },
): Promise<boolean> {
  const result = await sql`
    insert into operator_tokens (id, name, token_hash) values (${input.id}, ${input.name}, ${input.tokenHash})
    on conflict (name) do nothing`;
  return result.count === 1;
}

export async function listOperatorTokens(sql: Queryable): Promise<OperatorToken[]> {
  return sql<OperatorToken[]>`select ${columns(sql)} from operator_tokens order by created_at, id`;
}

/** False when there is no such token, or it was revoked before. */
export async function revokeOperatorToken(sql: Queryable, name: string): Promise<boolean> {
  const result = await sql`
    update operator_tokens set revoked_at = now() where name = ${name} and revoked_at is null`;
  return result.count === 1;
}

/** Whose token it is; null for one that is unknown or revoked. Its last use is written at most once a minute. */
export async function useOperatorToken(sql: Queryable, tokenHash: Buffer): Promise<{ name: string } | null> {
  const [row] = await sql<{ name: string }[]>`
    with found as (select id, name from operator_tokens where token_hash = ${tokenHash} and revoked_at is null),
    used as (
      update operator_tokens t set last_used_at = now() from found
      where t.id = found.id and (t.last_used_at is null or t.last_used_at < now() - interval '1 minute'))
    select name from found`;
  return row ?? null;
}
