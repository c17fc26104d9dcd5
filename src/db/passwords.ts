import type { Queryable } from "./connect.ts";

/** The password's hash with what a change of it needs. */
export interface StoredPassword {
  email: string;
  passwordHash: string | null;
}

export async function findPassword(sql: Queryable, userId: string): Promise<StoredPassword | null> {
  const [row] = await sql<StoredPassword[]>`select email, password_hash from users where id = ${userId}`;
  return row ?? null;
}

/**
 * Puts a new hash in the place of `from`; false when that is no longer the one, so of two changes that run side by side
 * one wins. Links to reset the old password end with it.
 */
export async function replacePassword(
  sql: Queryable,
  input: { userId: string; from: string; to: string },
): Promise<boolean> {
  // This first: a reset holds its token's row while asking for the user's.
  await sql`select 1 from one_time_tokens where user_id = ${input.userId} and kind = 'reset_password' for update`;
  const result = await sql`
    update users set password_hash = ${input.to}, updated_at = now()
    where id = ${input.userId} and password_hash = ${input.from}`;
  if (result.count === 0) return false;
  await sql`delete from one_time_tokens where user_id = ${input.userId} and kind = 'reset_password'`;
  return true;
}
