import type { Queryable } from "./connect.ts";

/** What stands in the way of an export: one that is being written, or enough of them within the hour. */
export interface Standing {
  running: boolean;
  started: number;
  /** When the oldest of the hour no longer counts. */
  freeAt: Date | null;
}

/**
 * Locks a person's exports for the rest of the transaction, forgets those older than an hour, and tells how things
 * stand. Null when there is no such user.
 */
export async function lockExports(sql: Queryable, userId: string): Promise<Standing | null> {
  const [user] = await sql`select 1 from users where id = ${userId} for no key update`;
  if (!user) return null;
  await sql`
    delete from exports
    where user_id = ${userId} and started_at <= now() - interval '1 hour' and lease_until <= now()`;
  const [row] = await sql<Standing[]>`
    select coalesce(bool_or(lease_until > now()), false) as running, count(*)::int as started,
      min(started_at) + interval '1 hour' as free_at
    from exports where user_id = ${userId}`;
  return row!;
}

export async function insertExport(
  sql: Queryable,
  input: { id: string; userId: string; leaseSeconds: number },
): Promise<void> {
  await sql`
    insert into exports (id, user_id, lease_until)
    values (${input.id}, ${input.userId}, now() + make_interval(secs => ${input.leaseSeconds}))`;
}

/** It is still being written; false when it is over, the session that asked for it has ended, or its user may not any more. */
export async function renewExport(
  sql: Queryable,
  input: { id: string; userId: string; sessionId: string; leaseSeconds: number },
): Promise<boolean> {
  const result = await sql`
    update exports set lease_until = now() + make_interval(secs => ${input.leaseSeconds})
    where id = ${input.id} and user_id = ${input.userId} and lease_until > now() and exists (
      select 1 from refresh_tokens s join users u on u.id = s.user_id
      where s.id = ${input.sessionId} and s.user_id = ${input.userId} and s.revoked_at is null and u.status = 'active')`;
  return result.count === 1;
}

export async function endExport(sql: Queryable, input: { id: string; userId: string }): Promise<void> {
  await sql`update exports set lease_until = now() where id = ${input.id} and user_id = ${input.userId}`;
}
