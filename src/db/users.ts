import type { Queryable } from "./connect.ts";

export interface User {
  id: string;
  email: string;
  emailVerified: boolean;
  name: string | null;
  avatarUrl: string | null;
  status: "active" | "suspended" | "deleting";
  timezone: string;
  plan: string;
  createdAt: Date;
}

const columns = (sql: Queryable) =>
  sql`id, email, email_verified, name, avatar_url, status, timezone, plan_of(id) as plan, created_at`;

/** Adds a user; null when the address has an account already (compared without case). */
export async function createUser(
  sql: Queryable,
  input: { id: string; email: string; passwordHash: string; name: string | null; timezone: string },
): Promise<User | null> {
  const [row] = await sql<User[]>`
    insert into users (id, email, password_hash, name, timezone)
    values (${input.id}, ${input.email}, ${input.passwordHash}, ${input.name}, ${input.timezone})
    on conflict (email) do nothing
    returning ${columns(sql)}`;
  return row ?? null;
}

/** For signing in only: the user of an address with the password's hash. */
export async function findUserWithPassword(
  sql: Queryable,
  email: string,
): Promise<(User & { passwordHash: string | null }) | null> {
  const [row] = await sql<(User & { passwordHash: string | null })[]>`
    select ${columns(sql)}, password_hash from users where email = ${email}`;
  return row ?? null;
}

/** For asking once more who it is: a user's address and password hash. */
export async function findCredentials(
  sql: Queryable,
  userId: string,
): Promise<{ email: string; passwordHash: string | null } | null> {
  const [row] = await sql<{ email: string; passwordHash: string | null }[]>`
    select email, password_hash from users where id = ${userId}`;
  return row ?? null;
}

/** Whether Postgres knows this IANA time zone. */
export async function isTimezone(sql: Queryable, name: string): Promise<boolean> {
  const [row] = await sql`select 1 from pg_timezone_names where name = ${name}`;
  return row !== undefined;
}
