import type { Queryable } from "./connect.ts";

/** A signed-in device: a row of refresh_tokens. Hashes are SHA-256: of its generation's first token, of its parent. */
export interface Session {
  id: string;
  userId: string;
  counter: number;
  branch: number;
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
    select s.id, s.user_id, s.counter, s.branch, s.token_hash, s.previous_token_hash, s.expires_at, s.revoked_at, u.status
    from refresh_tokens s join users u on u.id = s.user_id
    where s.id = ${sessionId} for update of s`;
  return row ?? null;
}

/** Begins the next generation of tokens; the one that was presented is its parent. */
export async function rotateSession(
  sql: Queryable,
  input: {
    sessionId: string;
    userId: string;
    fromCounter: number;
    presentedHash: Buffer;
    tokenHash: Buffer;
    ip: string | null;
    lifetimeSeconds: number;
  },
): Promise<boolean> {
  const result = await sql`
    update refresh_tokens
    set counter = counter + 1, branch = 0, previous_token_hash = ${input.presentedHash}, token_hash = ${input.tokenHash},
      ip = ${input.ip}, last_used_at = now(), expires_at = now() + make_interval(secs => ${input.lifetimeSeconds})
    where id = ${input.sessionId} and user_id = ${input.userId} and counter = ${input.fromCounter} and revoked_at is null`;
  return result.count === 1;
}

/** Counts one more token of the current generation; returns its number. The session must be locked. */
export async function branchSession(sql: Queryable, input: { sessionId: string; userId: string }): Promise<number> {
  const [row] = await sql<{ branch: number }[]>`
    update refresh_tokens set branch = branch + 1, last_used_at = now()
    where id = ${input.sessionId} and user_id = ${input.userId} returning branch`;
  if (!row) throw new Error("the session is locked, so it is there");
  return row.branch;
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

/** Ends the sessions of a user that were used longest ago, until `keep` are left; returns their ids. */
export async function revokeOldestSessions(
  sql: Queryable,
  input: { userId: string; keep: number; reason: string },
): Promise<string[]> {
  const rows = await sql<{ id: string }[]>`
    update refresh_tokens set revoked_at = now(), revoked_reason = ${input.reason}
    where user_id = ${input.userId} and revoked_at is null and id in (
      select id from refresh_tokens where user_id = ${input.userId} and revoked_at is null
      order by last_used_at desc, id desc offset ${input.keep})
    returning id`;
  return rows.map((row) => row.id);
}

/** Forgets the sessions of a user that ended longest ago, until `keep` ended ones are left. */
export async function deleteEndedSessions(sql: Queryable, input: { userId: string; keep: number }): Promise<void> {
  await sql`
    delete from refresh_tokens where user_id = ${input.userId} and revoked_at is not null and id in (
      select id from refresh_tokens where user_id = ${input.userId} and revoked_at is not null
      order by revoked_at desc, id desc offset ${input.keep})`;
}

/** A signed-in device as its owner sees it. */
export interface Device {
  id: string;
  deviceName: string | null;
  ip: string | null;
  createdAt: Date;
  lastUsedAt: Date;
}

const deviceColumns = (sql: Queryable) => sql`id, device_name, ip, created_at, last_used_at`;

/** The living sessions of a user, the one used last first. */
export async function listDevices(sql: Queryable, userId: string): Promise<Device[]> {
  return sql<Device[]>`
    select ${deviceColumns(sql)} from refresh_tokens
    where user_id = ${userId} and revoked_at is null and expires_at > now() order by last_used_at desc, id desc`;
}

/** Names a living session; null when this user has none of this id. */
export async function renameDevice(
  sql: Queryable,
  input: { sessionId: string; userId: string; deviceName: string },
): Promise<Device | null> {
  const [row] = await sql<Device[]>`
    update refresh_tokens set device_name = ${input.deviceName}
    where id = ${input.sessionId} and user_id = ${input.userId} and revoked_at is null and expires_at > now()
    returning ${deviceColumns(sql)}`;
  return row ?? null;
}

/** Where a user's own devices were lately, but for sessions that were ended for a reason other than logging out. */
export async function listSessionAddresses(sql: Queryable, userId: string): Promise<string[]> {
  const rows = await sql<{ ip: string }[]>`
    select distinct ip from refresh_tokens
    where user_id = ${userId} and ip is not null and (revoked_at is null or revoked_reason = 'logout')
      and last_used_at > now() - interval '90 days'`;
  return rows.map((row) => row.ip);
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

/** Those of the sessions that have ended or are gone, or whose user may not talk any more. */
export async function listEndedSessions(sql: Queryable, ids: string[]): Promise<string[]> {
  const rows = await sql<{ id: string }[]>`
    select asked.id from unnest(${ids}::uuid[]) as asked (id)
    where not exists (
      select 1 from refresh_tokens s join users u on u.id = s.user_id
      where s.id = asked.id and s.revoked_at is null and u.status = 'active')`;
  return rows.map((row) => row.id);
}
