import { insertAudit } from "../db/audit.ts";
import type { Queryable } from "../db/connect.ts";
import { notify } from "../db/notify.ts";
import {
  branchSession,
  createSession,
  deleteEndedSessions,
  listDevices,
  lockSession,
  renameDevice,
  revokeOldestSessions,
  revokeSession,
  revokeSessions,
  rotateSession,
  type Device,
  type Session,
} from "../db/sessions.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import { ACCESS_TOKEN_SECONDS, signAccessToken, type Identity } from "./accessTokens.ts";
import { announceNewDevice } from "./knownDevices.ts";
import { deriveRefreshToken, fitsHash, hashOf, parseRefreshToken, type TokenPlace } from "./refreshTokens.ts";
import { countRequest } from "./throttle.ts";

/** Where a request comes from: what an audit row needs. */
export interface Origin {
  ip: string | null;
  requestId: string;
}

export interface Tokens {
  access_token: string;
  refresh_token: string;
  expires_in: number;
}

const REFRESH_TOKEN_SECONDS = 30 * 24 * 3600;
/** Signed-in devices of one person; one more ends the session that was used longest ago. */
const MAX_LIVING = 50;
/** Ended sessions that are remembered, so that their tokens are told from unknown ones. */
const MAX_ENDED = 100;
/** Refresh tokens that are none of ours, from one address. */
const GARBAGE = { kind: "refresh", limit: 60, windowSeconds: 15 * 60 };

/*
 * A session is a signed-in device. Its tokens come in generations (the counter); of the current one several may be out,
 * its branches. All are derived: HMAC(JWT_SECRET, session, counter, branch); only hashes are stored.
 *   any of the current generation → the first of the next; the presented one is its parent, its sisters are dead
 *   the parent again              → its holder lost our answer: one more branch of the current generation, any number of times
 *   anything else                 → two parties hold the session: it ends for both, and the audit says so
 * Two who share a token can't both go on: each gets a branch of its own, and the first that is used kills the other.
 * Giving both the same token again would let them take turns for ever. The client's rules: docs/accounts.md.
 */

/** Opens a session in the caller's transaction; an unknown device is announced by mail, beyond 50 the one used longest ago ends. */
export async function openSession(
  deps: Pick<Deps, "config">,
  sql: Queryable,
  input: { userId: string; deviceName: string | null; ip: string | null },
): Promise<Tokens> {
  await announceNewDevice(sql, input);
  const sessionId = newId();
  const token = deriveRefreshToken(deps.config.JWT_SECRET, { sessionId, counter: 0, branch: 0 });
  await createSession(sql, {
    id: sessionId,
    userId: input.userId,
    deviceName: input.deviceName,
    ip: input.ip,
    tokenHash: hashOf(token),
    lifetimeSeconds: REFRESH_TOKEN_SECONDS,
  });
  const { userId } = input;
  await notifyEnded(sql, await revokeOldestSessions(sql, { userId, keep: MAX_LIVING, reason: "too_many" }));
  await deleteEndedSessions(sql, { userId, keep: MAX_ENDED });
  return issueTokens(deps, { userId, sessionId }, token);
}

/**
 * Exchanges a refresh token. Throws `invalid_refresh_token` or, after theft, logout or expiry, `session_revoked`;
 * `too_many_attempts` only for tokens that are none of ours.
 */
export async function refreshSession(
  deps: Pick<Deps, "config" | "sql" | "redis" | "localCounts">,
  origin: Origin,
  refreshToken: string,
): Promise<Tokens> {
  const place = parseRefreshToken(deps.config.JWT_SECRET, refreshToken);
  if (!place) {
    await countRequest(deps, { ...GARBAGE, who: origin.ip });
    throw new AppError("invalid_refresh_token");
  }
  const outcome = await deps.sql.begin((sql) => refreshLocked(deps, sql, origin, place));
  if (outcome instanceof AppError) throw outcome;
  return outcome;
}

// An expected "no" is returned, not thrown: the transaction that ends a stolen session must commit.
async function refreshLocked(
  deps: Pick<Deps, "config">,
  sql: Queryable,
  origin: Origin,
  place: TokenPlace,
): Promise<Tokens | AppError> {
  const session = await lockSession(sql, place.sessionId);
  if (!session) return new AppError("invalid_refresh_token");
  if (session.revokedAt) return new AppError("session_revoked");
  if (session.status !== "active") return new AppError("account_suspended");
  if (session.expiresAt.getTime() < Date.now()) return new AppError("invalid_refresh_token");
  const who = { userId: session.userId, sessionId: session.id };
  const tokenAt = (counter: number, branch: number) =>
    deriveRefreshToken(deps.config.JWT_SECRET, { sessionId: session.id, counter, branch });
  const presented = tokenAt(place.counter, place.branch);
  if (fitsHash(session.tokenHash, tokenAt(place.counter, 0)) && place.branch <= session.branch) {
    const next = tokenAt(session.counter + 1, 0);
    await rotateSession(sql, {
      ...who,
      fromCounter: session.counter,
      presentedHash: hashOf(presented),
      tokenHash: hashOf(next),
      ip: origin.ip,
      lifetimeSeconds: REFRESH_TOKEN_SECONDS,
    });
    return issueTokens(deps, who, next);
  }
  if (session.previousTokenHash && fitsHash(session.previousTokenHash, presented)) {
    return issueTokens(deps, who, tokenAt(session.counter, await branchSession(sql, who)));
  }
  await endStolenSession(sql, origin, session);
  return new AppError("session_revoked");
}

async function endStolenSession(sql: Queryable, origin: Origin, session: Session): Promise<void> {
  await revokeSession(sql, { sessionId: session.id, userId: session.userId, reason: "token_reuse" });
  await insertAudit(sql, {
    actor: "unknown",
    action: "session.token_reuse",
    subjectUserId: session.userId,
    ip: origin.ip,
    requestId: origin.requestId,
    details: { session_id: session.id },
  });
  await notifyEnded(sql, [session.id]);
}

/**
 * Ends every session of a user, but for `except`, in the caller's transaction: access tokens, refresh tokens and open
 * sockets, of every process, as soon as it commits. Returns how many. A change of password or status comes first in the
 * transaction: its lock keeps a sign-in that is under way from adding one that would be missed.
 */
export async function revokeAllSessions(
  sql: Queryable,
  input: { userId: string; reason: string; except?: string },
): Promise<number> {
  const ended = await revokeSessions(sql, input);
  await notifyEnded(sql, ended);
  return ended.length;
}

async function notifyEnded(sql: Queryable, sessionIds: string[]): Promise<void> {
  for (const id of sessionIds) await notify(sql, "session", id);
}

/** Signs out: this device, or every device of the user. The access token is dead at once. */
export async function endSession(
  deps: Pick<Deps, "sql">,
  actor: Identity,
  origin: Origin,
  input: { all: boolean },
): Promise<void> {
  const { userId, sessionId } = actor;
  await deps.sql.begin(async (sql) => {
    const sessions = input.all
      ? await revokeAllSessions(sql, { userId, reason: "logout" })
      : Number(await endOne(sql, { userId, sessionId, reason: "logout" }));
    await auditEnd(sql, actor, origin, { sessions });
  });
}

/** The devices that a user is signed in on; `current` is the one that asks. */
export async function listSessions(
  deps: Pick<Deps, "sql">,
  actor: Identity,
): Promise<(Device & { current: boolean })[]> {
  const devices = await listDevices(deps.sql, actor.userId);
  return devices.map((device) => ({ ...device, current: device.id === actor.sessionId }));
}

/** Names one of the user's devices. Throws `session_not_found`. */
export async function renameSession(
  deps: Pick<Deps, "sql">,
  actor: Identity,
  input: { sessionId: string; deviceName: string },
): Promise<Device & { current: boolean }> {
  const device = await renameDevice(deps.sql, { ...input, userId: actor.userId });
  if (!device) throw new AppError("session_not_found");
  return { ...device, current: device.id === actor.sessionId };
}

/** Signs one of the user's devices out, perhaps the one that asks. Throws `session_not_found`. */
export async function endOtherSession(
  deps: Pick<Deps, "sql">,
  actor: Identity,
  origin: Origin,
  sessionId: string,
): Promise<void> {
  await deps.sql.begin(async (sql) => {
    // Not as if it had signed out by itself: it may be a stranger's, whose device and address are not to be trusted.
    const reason = sessionId === actor.sessionId ? "logout" : "removed";
    if (!(await endOne(sql, { userId: actor.userId, sessionId, reason }))) throw new AppError("session_not_found");
    await auditEnd(sql, actor, origin, { sessions: 1, session_id: sessionId });
  });
}

async function endOne(sql: Queryable, input: { userId: string; sessionId: string; reason: string }): Promise<boolean> {
  const ended = await revokeSession(sql, input);
  if (ended) await notifyEnded(sql, [input.sessionId]);
  return ended;
}

async function auditEnd(
  sql: Queryable,
  actor: Identity,
  origin: Origin,
  details: Record<string, string | number>,
): Promise<void> {
  const { userId } = actor;
  await insertAudit(sql, {
    actor: `user:${userId}`,
    action: "session.logout",
    subjectUserId: userId,
    ...origin,
    details,
  });
}

async function issueTokens(
  deps: Pick<Deps, "config">,
  who: { userId: string; sessionId: string },
  refreshToken: string,
): Promise<Tokens> {
  return {
    access_token: await signAccessToken(deps.config, who),
    refresh_token: refreshToken,
    expires_in: ACCESS_TOKEN_SECONDS,
  };
}
