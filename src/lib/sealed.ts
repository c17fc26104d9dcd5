import { createCipheriv, createDecipheriv, hkdfSync, randomBytes } from "node:crypto";

const VERSION = 1;
const IV_BYTES = 12;
const TAG_BYTES = 16;

/**
 * Encrypts a text that must be read again, for a column: one byte of version, 12 of IV, AES-256-GCM's text, 16 of tag.
 * The key is HKDF-SHA256 of `secret` for this `purpose`: what was sealed for another can't be opened.
 */
export function seal(secret: string, purpose: string, text: string): Buffer {
  const iv = randomBytes(IV_BYTES);
  const cipher = createCipheriv("aes-256-gcm", keyOf(secret, purpose), iv).setAAD(Buffer.of(VERSION));
  return Buffer.concat([Buffer.of(VERSION), iv, cipher.update(text, "utf8"), cipher.final(), cipher.getAuthTag()]);
}

/** Opens what `seal` made; null for anything else: another secret, another purpose, a changed byte, an unknown version. */
export function unseal(secret: string, purpose: string, sealed: Uint8Array): string | null {
  const bytes = Buffer.from(sealed);
  if (bytes[0] !== VERSION || bytes.length < 1 + IV_BYTES + TAG_BYTES) return null;
  const iv = bytes.subarray(1, 1 + IV_BYTES);
  const tag = bytes.subarray(-TAG_BYTES);
  try {
    const decipher = createDecipheriv("aes-256-gcm", keyOf(secret, purpose), iv, { authTagLength: TAG_BYTES });
    decipher.setAAD(Buffer.of(VERSION)).setAuthTag(tag);
    return decipher.update(bytes.subarray(1 + IV_BYTES, -TAG_BYTES), undefined, "utf8") + decipher.final("utf8");
  } catch {
    return null;
  }
}

function keyOf(secret: string, purpose: string): Buffer {
  return Buffer.from(hkdfSync("sha256", secret, "", `reef-seal:${VERSION}:${purpose}`, 32));
}
