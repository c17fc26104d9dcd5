import type { Queryable } from "./connect.ts";
import { columns as userColumns, type User } from "./users.ts";

/** A person as they see themselves. */
export interface Profile extends User {
  timezoneChangedAt: Date | null;
  hasPassword: boolean;
  providers: ("apple" | "google")[];
}

const columns = (sql: Queryable) => sql`${userColumns(sql)}, timezone_changed_at,
  password_hash is not null as has_password,
  array(select distinct provider from identities i where i.user_id = users.id order by provider) as providers`;

export async function findProfile(sql: Queryable, userId: string): Promise<Profile | null> {
  const [row] = await sql<Profile[]>`select ${columns(sql)} from users where id = ${userId}`;
  return row ?? null;
}

/**
 * Changes what is given; null clears. A time zone is changed at most once in 24 hours, by the condition of this one
 * statement; the same zone again is no change. The day that runs keeps its end. Null when it is too early: then nothing changed.
 */
export async function updateProfile(
  sql: Queryable,
  input: { userId: string; name?: string | null; avatarUrl?: string | null; timezone?: string },
): Promise<Profile | null> {
  const zone = input.timezone ?? null;
  const [row] = await sql<Profile[]>`
    update users set
      name = case when ${input.name !== undefined}::boolean then ${input.name ?? null}::text else name end,
      avatar_url = case when ${input.avatarUrl !== undefined}::boolean then ${input.avatarUrl ?? null}::text else avatar_url end,
      timezone = coalesce(${zone}::text, timezone),
      timezone_changed_at = case when ${zone}::text <> timezone then now() else timezone_changed_at end,
      kept_day = case when ${zone}::text <> timezone then (select day.date from day_of(users, now()) day) else kept_day end,
      kept_day_ends_at = case when ${zone}::text <> timezone then (select reset_at from day_of(users, now())) else kept_day_ends_at end,
      updated_at = now()
    where id = ${input.userId} and (${zone}::text is null or timezone = ${zone}::text
      or timezone_changed_at is null or timezone_changed_at <= now() - interval '24 hours')
    returning ${columns(sql)}`;
  return row ?? null;
}

/** When the time zone can be changed again; null for at once. */
export async function findNextTimezoneChange(sql: Queryable, userId: string): Promise<Date | null> {
  const [row] = await sql<{ at: Date | null }[]>`
    select timezone_changed_at + interval '24 hours' as at from users where id = ${userId}`;
  return row?.at ?? null;
}
