import type { Queryable } from "./connect.ts";

/** A signed-in device: a row of refresh_tokens. Hashes are SHA-256 of the whole token. */
export interface Session {
  id: string;
  userId: string;
  counter: number;
  tokenHash: Buffer;
  previousTokenHash: Buffer | null;
  expiresAt: Date;
  revokedAt: Date | null;
}

/** What a request needs to know about who makes it. */
export interface SessionIdentity {
  sessionId: string;
  userId: string;
  revokedAt: Date | null;
  status: "active" | "suspended" | "deleting";
}

export async function createSession(
  sql: Queryable,
  input: {
    id: string;
    userId: string;
    tokenHash: Buffer;
    deviceName: string | null;
    ip: string | null;
    lifetimeSeconds: number;
  },
): Promise<void> {
  await sql`
    insert into refresh_tokens (id, user_id, token_hash, device_name, ip, expires_at)
    values (${input.id}, ${input.userId}, ${input.tokenHash}, ${input.deviceName}, ${input.ip},
      now() + make_interval(secs => ${input.lifetimeSeconds}))`;
}

/** Reads and locks a session for the rest of the transaction, so that two refreshes of one device take turns. */
export async function lockSession(sql: Queryable, sessionId: string): Promise<(Session & { status: string }) | null> {
  const [row] = await sql<(Session & { status: string })[]>`
    select s.id, s.user_id, s.counter, s.token_hash, s.previous_token_hash, s.expires_at, s.revoked_at, u.status
    from refresh_tokens s join users u on u.id = s.user_id
    where s.id = ${sessionId} for update of s`;
  return row ?? null;
}

/** Makes the next token the current one; the current becomes the previous. */
export async function rotateSession(
  sql: Queryable,
  input: {
    sessionId: string;
    userId: string;
    fromCounter: number;
    tokenHash: Buffer;
    ip: string | null;
    lifetimeSeconds: number;
  },
): Promise<boolean> {
  const result = await sql`
    update refresh_tokens
    set counter = counter + 1, previous_token_hash = token_hash, token_hash = ${input.tokenHash}, ip = ${input.ip},
      last_used_at = now(), expires_at = now() + make_interval(secs => ${input.lifetimeSeconds})
    where id = ${input.sessionId} and user_id = ${input.userId} and counter = ${input.fromCounter} and revoked_at is null`;
  return result.count === 1;
}

/** Ends one session; false when it was not this user's or had ended already. */
export async function revokeSession(
  sql: Queryable,
  input: { sessionId: string; userId: string; reason: string },
): Promise<boolean> {
  const result = await sql`
    update refresh_tokens set revoked_at = now(), revoked_reason = ${input.reason}
    where id = ${input.sessionId} and user_id = ${input.userId} and revoked_at is null`;
  return result.count === 1;
}

/** Ends every session of a user, but for `except`; returns their ids. */
export async function revokeSessions(
  sql: Queryable,
  input: { userId: string; reason: string; except?: string },
): Promise<string[]> {
  const rows = await sql<{ id: string }[]>`
    update refresh_tokens set revoked_at = now(), revoked_reason = ${input.reason}
    where user_id = ${input.userId} and revoked_at is null and id is distinct from ${input.except ?? null}::uuid
    returning id`;
  return rows.map((row) => row.id);
}

/** The identity behind an access token, read at each request: a revoked session or suspended user ends at once. */
export async function findIdentity(
  sql: Queryable,
  input: { sessionId: string; userId: string },
): Promise<SessionIdentity | null> {
  const [row] = await sql<SessionIdentity[]>`
    select s.id as session_id, s.user_id, s.revoked_at, u.status
    from refresh_tokens s join users u on u.id = s.user_id
    where s.id = ${input.sessionId} and s.user_id = ${input.userId}`;
  return row ?? null;
}

/** Those of the sessions that have ended, or whose user may not talk any more. */
export async function listEndedSessions(sql: Queryable, ids: string[]): Promise<string[]> {
  const rows = await sql<{ id: string }[]>`
    select s.id from refresh_tokens s join users u on u.id = s.user_id
    where s.id = any(${ids}::uuid[]) and (s.revoked_at is not null or u.status <> 'active')`;
  return rows.map((row) => row.id);
}
