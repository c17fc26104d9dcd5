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

export const columns = (sql: Queryable) =>
  sql`id, email, email_verified, name, avatar_url, status, timezone, plan_of(id) as plan, created_at`;

/** Adds a user; null when the address has an account already (compared without case). */
export async function createUser(
  sql: Queryable,
  input: {
    id: string;
    email: string;
    emailVerified?: boolean;
    /** Null for who signs in with Apple or Google only. */
    passwordHash: string | null;
    name: string | null;
    timezone: string;
  },
): Promise<User | null> {
  const [row] = await sql<User[]>`
    insert into users (id, email, email_verified, password_hash, name, timezone)
    values (${input.id}, ${input.email}, ${input.emailVerified ?? false}, ${input.passwordHash}, ${input.name}, ${input.timezone})
    on conflict (email) do nothing
    returning ${columns(sql)}`;
  return row ?? null;
}

/** A user's address; null when there is no such user. */
export async function findEmail(sql: Queryable, userId: string): Promise<string | null> {
  const [row] = await sql<{ email: string }[]>`select email from users where id = ${userId}`;
  return row?.email ?? null;
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

/**
 * Whether an account still has this password and may sign in; until the transaction ends neither changes. A reset that
 * comes later waits, and then ends what the transaction has made.
 */
export async function lockPassword(
  sql: Queryable,
  input: { userId: string; passwordHash: string | null },
): Promise<boolean> {
  const [row] = await sql`
    select 1 from users
    where id = ${input.userId} and password_hash = ${input.passwordHash} and status = 'active' for share`;
  return row !== undefined;
}

/** Whether Postgres knows this IANA time zone. */
export async function isTimezone(sql: Queryable, name: string): Promise<boolean> {
  const [row] = await sql`select 1 from pg_timezone_names where name = ${name}`;
  return row !== undefined;
}
