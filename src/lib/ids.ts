import { createHash, randomBytes } from "node:crypto";

/** A new UUIDv7 (RFC 9562): sorts by time of creation. */
export function newId(nowMs: number = Date.now()): string {
  const bytes = randomBytes(16);
  bytes.writeUIntBE(nowMs, 0, 6);
  return formatUuid(bytes, 7);
}

/** How long ago a UUIDv7 was made: an id made on accepting something needs no other clock. */
export function secondsSince(id: string): number {
  return Math.max(0, (Date.now() - Number.parseInt(id.replaceAll("-", "").slice(0, 12), 16)) / 1000);
}

/** The same UUID (version 8) for the same parts: makes a repeated request find what its first run created. */
export function deriveId(...parts: string[]): string {
  return formatUuid(createHash("sha256").update(parts.join("\u0000")).digest().subarray(0, 16), 8);
}

/** A new agent id, in the form the gateway accepts (`[a-z0-9][a-z0-9_-]{0,63}`); never reused. */
export function newAgentId(): string {
  return `agent_${randomBytes(10).toString("hex")}`;
}

function formatUuid(bytes: Buffer, version: number): string {
  const out = Buffer.from(bytes);
  out[6] = (out[6]! & 0x0f) | (version << 4);
  out[8] = (out[8]! & 0x3f) | 0x80;
  const hex = out.toString("hex");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}
