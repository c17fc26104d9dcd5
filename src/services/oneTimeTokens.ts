import { createHash, createHmac, timingSafeEqual } from "node:crypto";
import type { Queryable } from "../db/connect.ts";
import { consumeToken, findToken, replaceToken, type TokenKind } from "../db/oneTimeTokens.ts";
import type { Deps } from "../deps.ts";
import { newId } from "../lib/ids.ts";

const LIFETIME_SECONDS = { reset_password: 3600, verify_email: 24 * 3600 } as const;

type TokenDeps = Pick<Deps, "config">;

/*
 * A one-time token is derived: HMAC(JWT_SECRET, kind, id of its row). The row has its hash, the outbox only the row's
 * id, and the link is made when the mail is sent. One living token per user and kind: a new one kills the one before.
 *   living → used (by the one update that permits what it is for) | superseded (the row has another id) | expired
 */

/** Makes a user's token, in the caller's transaction. Returns its id; null for nobody who may have one. */
export async function createOneTimeToken(
  deps: TokenDeps,
  sql: Queryable,
  input: { userId: string; kind: TokenKind },
): Promise<string | null> {
  const id = newId();
  const tokenHash = hashOf(deriveOneTimeToken(deps, { id, kind: input.kind }));
  const lifetimeSeconds = LIFETIME_SECONDS[input.kind];
  return (await replaceToken(sql, { ...input, id, tokenHash, lifetimeSeconds })) ? id : null;
}

/** The token itself, for the link that is being sent; null when it would not open anything any more. */
export async function findLivingToken(
  deps: Pick<Deps, "config" | "sql">,
  input: { id: string; kind: TokenKind },
): Promise<string | null> {
  const token = deriveOneTimeToken(deps, input);
  return (await findToken(deps.sql, { ...input, tokenHash: hashOf(token) })) ? token : null;
}

/** Whose living token was presented, without using it up; null when it is not one of this kind. */
export async function findTokenOwner(
  deps: Pick<Deps, "config" | "sql">,
  input: { token: string; kind: TokenKind },
): Promise<{ userId: string; email: string } | null> {
  const id = readTokenId(deps, input);
  return id === null ? null : findToken(deps.sql, { id, kind: input.kind, tokenHash: hashOf(input.token) });
}

/** Uses a presented token up, in the transaction of what it permits. Returns whose it was; null as above. */
export async function useOneTimeToken(
  deps: TokenDeps,
  sql: Queryable,
  input: { token: string; kind: TokenKind },
): Promise<string | null> {
  const id = readTokenId(deps, input);
  return id === null ? null : consumeToken(sql, { id, kind: input.kind, tokenHash: hashOf(input.token) });
}

/** base64url of the row's id (16 bytes) and HMAC-SHA256 of kind and id (32 bytes). */
export function deriveOneTimeToken({ config }: TokenDeps, { id, kind }: { id: string; kind: TokenKind }): string {
  const head = Buffer.from(id.replaceAll("-", ""), "hex");
  const mac = createHmac("sha256", `reef-one-time:${config.JWT_SECRET}`).update(`${kind}:`).update(head).digest();
  return Buffer.concat([head, mac]).toString("base64url");
}

// What we did not make never reaches the database.
function readTokenId(deps: TokenDeps, { token, kind }: { token: string; kind: TokenKind }): string | null {
  const hex = Buffer.from(token, "base64url").toString("hex");
  if (hex.length !== 96) return null;
  const id = hex.slice(0, 32).replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
  return timingSafeEqual(hashOf(deriveOneTimeToken(deps, { id, kind })), hashOf(token)) ? id : null;
}

function hashOf(token: string): Buffer {
  return createHash("sha256").update(token).digest();
}
