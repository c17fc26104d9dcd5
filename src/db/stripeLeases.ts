import type { Queryable } from "./connect.ts";

/**
 * Takes the lease to deal with Stripe for a user, unless somebody has it; with `active` only of a user who is. The lock
 * on the user's row puts a checkout and the beginning of a deletion in an order.
 */
export async function claimStripeLease(
  sql: Queryable,
  input: { userId: string; token: string; leaseMs: number; active: boolean },
): Promise<boolean> {
  const result = await sql`
    with person as (
      select id from users where id = ${input.userId} and (status = 'active' or not ${input.active}::boolean) for share)
    insert into stripe_leases (user_id, token, until)
    select id, ${input.token}, now() + make_interval(secs => ${input.leaseMs / 1000}) from person
    on conflict (user_id) do update set token = excluded.token, until = excluded.until
      where stripe_leases.until <= now()`;
  return result.count === 1;
}

/** Why it could not be taken: whether the user is active, and for how long somebody has it. */
export async function findStripeLease(
  sql: Queryable,
  userId: string,
): Promise<{ active: boolean; secondsLeft: number } | null> {
  const [row] = await sql<{ active: boolean; secondsLeft: number }[]>`
    select u.status = 'active' as active,
      greatest(0, coalesce(extract(epoch from l.until - now()), 0))::float8 as seconds_left
    from users u left join stripe_leases l on l.user_id = u.id where u.id = ${userId}`;
  return row ?? null;
}

/**
 * Lets go of the lease. What was not `seen` to its end leaves its row behind, as a sign that Stripe may know of something
 * that we don't.
 */
export async function releaseStripeLease(
  sql: Queryable,
  { userId, token, seen }: { userId: string; token: string; seen: boolean },
): Promise<void> {
  if (seen) await sql`delete from stripe_leases where user_id = ${userId} and token = ${token}`;
  else await sql`update stripe_leases set until = now() where user_id = ${userId} and token = ${token}`;
}
