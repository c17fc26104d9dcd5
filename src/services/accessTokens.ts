import { createHash } from "node:crypto";
import { errors, jwtVerify, SignJWT } from "jose";
import { z } from "zod";
import { findIdentity } from "../db/sessions.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";

export const ACCESS_TOKEN_SECONDS = 15 * 60;
const AUDIENCE = "reef:user";

/** Who a valid access token stands for. */
export interface Identity {
  kind: "user";
  userId: string;
  sessionId: string;
  /** Seconds since 1970. */
  expiresAt: number;
}

/** How far another machine of ours may be ahead; nothing else makes a token of the future. */
const CLOCK_SKEW_SECONDS = 60;

const claimsSchema = z.object({ sub: z.uuid(), sid: z.uuid(), exp: z.number(), iat: z.number() });

/** Signs an access token (JWT, HS256) for a session; it lives 15 minutes. */
export async function signAccessToken(
  config: Pick<Deps["config"], "JWT_SECRET">,
  who: { userId: string; sessionId: string },
): Promise<string> {
  const secret = new TextEncoder().encode(config.JWT_SECRET);
  return new SignJWT({ sid: who.sessionId })
    .setProtectedHeader({ alg: "HS256", typ: "JWT", kid: keyIdOf(config.JWT_SECRET) })
    .setSubject(who.userId)
    .setAudience(AUDIENCE)
    .setJti(newId())
    .setIssuedAt()
    .setExpirationTime(`${ACCESS_TOKEN_SECONDS}s`)
    .sign(secret);
}

/**
 * Checks an access token and reads its session: one that was revoked, or whose user is suspended or leaving, is refused
 * at once, however long the token would live. That row is why no list of dead `jti`s is kept anywhere: it says the same for
 * every token of the session, in every process, and a Redis that forgets brings none back to life. Throws `token_expired`, `unauthorized`, `session_revoked`, `account_suspended`.
 */
export async function authenticate(deps: Pick<Deps, "config" | "sql">, token: string): Promise<Identity> {
  const claims = await readClaims(deps.config.JWT_SECRET, token);
  const identity = await findIdentity(deps.sql, { sessionId: claims.sid, userId: claims.sub });
  if (!identity) throw new AppError("unauthorized");
  if (identity.revokedAt) throw new AppError("session_revoked");
  if (identity.status !== "active") throw new AppError("account_suspended");
  return { kind: "user", userId: claims.sub, sessionId: claims.sid, expiresAt: claims.exp };
}

async function readClaims(secret: string, token: string): Promise<z.infer<typeof claimsSchema>> {
  try {
    const { payload } = await jwtVerify(token, new TextEncoder().encode(secret), {
      algorithms: ["HS256"],
      audience: AUDIENCE,
      requiredClaims: ["exp", "iat", "jti"],
    });
    const claims = claimsSchema.parse(payload);
    if (claims.iat > Date.now() / 1000 + CLOCK_SKEW_SECONDS) throw new AppError("unauthorized");
    return claims;
  } catch (error) {
    throw new AppError(error instanceof errors.JWTExpired ? "token_expired" : "unauthorized");
  }
}

/** Names a key without telling it, so that secrets can be changed while old tokens live. */
function keyIdOf(secret: string): string {
  return createHash("sha256").update(`reef-kid:${secret}`).digest("hex").slice(0, 8);
}
