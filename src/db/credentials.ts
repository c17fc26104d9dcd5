import type { Queryable } from "./connect.ts";

/** The active account of an address; null when there is none that may be written to. */
export async function findActiveAccount(sql: Queryable, email: string): Promise<string | null> {
  const [row] = await sql<{ id: string }[]>`select id from users where email = ${email} and status = 'active'`;
  return row?.id ?? null;
}

/**
 * Sets the password of somebody who has read a mail to the account's address, which is thereby verified. Where it was not,
 * nobody knows whose Apple or Google account opens this one, so none does any more.
 */
export async function resetUserPassword(
  sql: Queryable,
  input: { userId: string; passwordHash: string },
): Promise<boolean> {
  const result = await sql`
    with account as (
      select id, email_verified from users where id = ${input.userId} and status = 'active' for update
    ), unlinked as (
      delete from identities i using account a where i.user_id = a.id and not a.email_verified
    )
    update users u set password_hash = ${input.passwordHash}, email_verified = true, updated_at = now()
    from account a where u.id = a.id`;
  return result.count === 1;
}

export async function verifyUserEmail(sql: Queryable, input: { userId: string }): Promise<void> {
  await sql`
    update users set email_verified = true, updated_at = now() where id = ${input.userId} and not email_verified`;
}

/**
 * The devices that a user has signed in with, newest first, ended ones included; the newest thousand are enough.
 * `trusted`: nobody has signed it out from another device, and it has not ended by a theft.
 */
export async function listKnownDevices(
  sql: Queryable,
  userId: string,
): Promise<{ deviceName: string | null; ip: string | null; trusted: boolean }[]> {
  return sql`
    select distinct device_name, ip, coalesce(revoked_reason, '') not in ('removed', 'token_reuse') as trusted from (
      select device_name, ip, revoked_reason from refresh_tokens where user_id = ${userId}
      order by created_at desc limit 1000) recent`;
}
