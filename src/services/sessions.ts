import { createHash, createHmac, timingSafeEqual } from "node:crypto";
import { insertAudit } from "../db/audit.ts";
import type { Queryable } from "../db/connect.ts";
import { notify } from "../db/notify.ts";
import {
  createSession,
  lockSession,
  revokeSession,
  revokeSessions,
  rotateSession,
  type Session,
} from "../db/sessions.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import { ACCESS_TOKEN_SECONDS, signAccessToken, type Identity } from "./accessTokens.ts";

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

/*
 * A session is a signed-in device. Its refresh tokens are numbered 0, 1, 2 … and derived: token n is
 * HMAC(JWT_SECRET, session, n), so that the current one can be handed out again although only its hash is stored.
 *   current presented   → the next one (rotation)
 *   previous presented  → its holder lost our answer: the current one again
 *   any older presented → two parties hold the session: it ends for both, and the audit says so
 */

/** Opens a session for a user, in the caller's transaction. */
export async function openSession(
  deps: Pick<Deps, "config">,
  sql: Queryable,
  input: { userId: string; deviceName: string | null; ip: string | null },
): Promise<Tokens> {
  const sessionId = newId();
  const token = deriveRefreshToken(deps.config.JWT_SECRET, sessionId, 0);
  await createSession(sql, {
    id: sessionId,
    userId: input.userId,
    deviceName: input.deviceName,
    ip: input.ip,
    tokenHash: hashOf(token),
    lifetimeSeconds: REFRESH_TOKEN_SECONDS,
  });
  return issueTokens(deps, { userId: input.userId, sessionId }, token);
}

/** Exchanges a refresh token. Throws `invalid_refresh_token` or, after theft, logout or expiry, `session_revoked`. */
export async function refreshSession(
  deps: Pick<Deps, "config" | "sql">,
  origin: Origin,
  refreshToken: string,
): Promise<Tokens> {
  const presented = parseRefreshToken(deps.config.JWT_SECRET, refreshToken);
  if (!presented) throw new AppError("invalid_refresh_token");
  const outcome = await deps.sql.begin((sql) => refreshLocked(deps, sql, origin, presented));
  if (outcome instanceof AppError) throw outcome;
  return outcome;
}

// An expected "no" is returned, not thrown: the transaction that ends a stolen session must commit.
async function refreshLocked(
  deps: Pick<Deps, "config">,
  sql: Queryable,
  origin: Origin,
  presented: { sessionId: string; counter: number },
): Promise<Tokens | AppError> {
  const session = await lockSession(sql, presented.sessionId);
  if (!session) return new AppError("invalid_refresh_token");
  if (session.revokedAt) return new AppError("session_revoked");
  if (session.status !== "active") return new AppError("account_suspended");
  if (session.expiresAt.getTime() < Date.now()) return new AppError("invalid_refresh_token");
  const who = { userId: session.userId, sessionId: session.id };
  const token = (counter: number) => deriveRefreshToken(deps.config.JWT_SECRET, session.id, counter);
  if (isPresented(session.tokenHash, token(presented.counter))) {
    const next = token(session.counter + 1);
    await rotateSession(sql, {
      ...who,
      fromCounter: session.counter,
      tokenHash: hashOf(next),
      ip: origin.ip,
      lifetimeSeconds: REFRESH_TOKEN_SECONDS,
    });
    return issueTokens(deps, who, next);
  }
  if (session.previousTokenHash && isPresented(session.previousTokenHash, token(presented.counter))) {
    return issueTokens(deps, who, token(session.counter));
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
  await notify(sql, "session", session.id);
}

/** Signs out: this device, or every device of the user. The access token is dead at once. */
export async function endSession(
  deps: Pick<Deps, "sql">,
  actor: Identity,
  origin: Origin,
  input: { all: boolean },
): Promise<void> {
  await deps.sql.begin(async (sql) => {
    const ended = input.all
      ? await revokeSessions(sql, { userId: actor.userId, reason: "logout" })
      : (await revokeSession(sql, { sessionId: actor.sessionId, userId: actor.userId, reason: "logout" }))
        ? [actor.sessionId]
        : [];
    await insertAudit(sql, {
      actor: `user:${actor.userId}`,
      action: "session.logout",
      subjectUserId: actor.userId,
      ip: origin.ip,
      requestId: origin.requestId,
      details: { sessions: ended.length },
    });
    for (const id of ended) await notify(sql, "session", id);
  });
}

/**
 * Ends every session of a user, but for `except`, in the caller's transaction; open sockets on every process close with
 * its commit. Returns how many ended.
 */
export async function revokeAllSessions(
  sql: Queryable,
  input: { userId: string; reason: string; except?: string },
): Promise<number> {
  const ended = await revokeSessions(sql, input);
  for (const id of ended) await notify(sql, "session", id);
  return ended.length;
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

/** `rt_` + base64url of session id (16 bytes), counter (4 bytes), HMAC-SHA256 of both (32 bytes). */
function deriveRefreshToken(secret: string, sessionId: string, counter: number): string {
  const head = Buffer.alloc(20);
  head.write(sessionId.replaceAll("-", ""), 0, "hex");
  head.writeUInt32BE(counter, 16);
  const mac = createHmac("sha256", `reef-refresh:${secret}`).update(head).digest();
  return `rt_${Buffer.concat([head, mac]).toString("base64url")}`;
}

/** Reads a token of ours; null for anything that we did not make, without asking the database. */
function parseRefreshToken(secret: string, token: string): { sessionId: string; counter: number } | null {
  const bytes = Buffer.from(token.startsWith("rt_") ? token.slice(3) : "", "base64url");
  if (bytes.length !== 52) return null;
  const hex = bytes.toString("hex", 0, 16);
  const sessionId = `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
  const counter = bytes.readUInt32BE(16);
  return isPresented(hashOf(deriveRefreshToken(secret, sessionId, counter)), token) ? { sessionId, counter } : null;
}

function isPresented(storedHash: Buffer, token: string): boolean {
  return timingSafeEqual(storedHash, hashOf(token));
}

function hashOf(token: string): Buffer {
  return createHash("sha256").update(token).digest();
}
