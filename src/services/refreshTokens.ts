import { createHash, createHmac, timingSafeEqual } from "node:crypto";

/** Which token of a session: the `counter`-th generation's, and in it the `branch`-th that was handed out. */
export interface TokenPlace {
  sessionId: string;
  counter: number;
  branch: number;
}

const HEAD_BYTES = 24;
const MAC_BYTES = 32;

/** `rt_` + base64url of session id (16 bytes), counter (4), branch (4), HMAC-SHA256 of these (32). */
export function deriveRefreshToken(secret: string, place: TokenPlace): string {
  const head = Buffer.alloc(HEAD_BYTES);
  head.write(place.sessionId.replaceAll("-", ""), 0, "hex");
  head.writeUInt32BE(place.counter, 16);
  head.writeUInt32BE(place.branch, 20);
  const mac = createHmac("sha256", `reef-refresh:${secret}`).update(head).digest();
  return `rt_${Buffer.concat([head, mac]).toString("base64url")}`;
}

/** Reads a token of ours; null for anything that we did not make, without asking the database. */
export function parseRefreshToken(secret: string, token: string): TokenPlace | null {
  const bytes = Buffer.from(token.startsWith("rt_") ? token.slice(3) : "", "base64url");
  if (bytes.length !== HEAD_BYTES + MAC_BYTES) return null;
  const hex = bytes.toString("hex", 0, 16);
  const sessionId = `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
  const place = { sessionId, counter: bytes.readUInt32BE(16), branch: bytes.readUInt32BE(20) };
  return fitsHash(hashOf(deriveRefreshToken(secret, place)), token) ? place : null;
}

/** What is stored of a token: SHA-256. */
export function hashOf(token: string): Buffer {
  return createHash("sha256").update(token).digest();
}

export function fitsHash(storedHash: Buffer, token: string): boolean {
  return timingSafeEqual(storedHash, hashOf(token));
}
