import { createHash } from "node:crypto";
import { invalidParameter, StripeFault } from "./stripeErrors.ts";

/** Seconds after which Stripe forgets a key. */
const KEPT_SECONDS = 24 * 3600;
const KEY_LENGTH = 255;

/** An answer that the same request with the same key gets again; null while the first is under way. */
interface Kept {
  fingerprint: string;
  path: string;
  at: number;
  answer: { status: number; body: string } | null;
}

/** By key, of one mode. Plain data. */
export type IdempotencyKeys = Record<string, Kept>;

export function fingerprintOf(method: string, path: string, body: string): string {
  const fields = [...new URLSearchParams(body)].map((pair) => JSON.stringify(pair)).toSorted();
  return createHash("sha256")
    .update([method, path, ...fields].join("\n"))
    .digest("hex");
}

/** The answer to give again, or null when the work is to be done now under this key. */
export function beginRequest(
  keys: IdempotencyKeys,
  request: { key: string; method: string; path: string; body: string; now: number },
): { status: number; body: string } | null {
  const { key, method, path, body, now } = request;
  if (key.length > KEY_LENGTH)
    throw invalidParameter(`Idempotency keys must be at most ${KEY_LENGTH} characters long.`, "idempotency_key");
  const fingerprint = fingerprintOf(method, path, body);
  const known = Object.hasOwn(keys, key) ? keys[key] : undefined;
  if (!known || now - known.at >= KEPT_SECONDS) {
    keys[key] = { fingerprint, path, at: now, answer: null };
    return null;
  }
  if (known.path !== path)
    throw idempotencyError(
      `Keys for idempotent requests can only be used for the same endpoint they were first used for ('${path}' vs '${known.path}'). Try using a key other than '${key}' if you meant to execute a different request.`,
    );
  if (known.fingerprint !== fingerprint)
    throw idempotencyError(
      `Keys for idempotent requests can only be used with the same parameters they were first used with. Try using a key other than '${key}' if you meant to execute a different request.`,
    );
  if (known.answer) return known.answer;
  const message = `There is currently another in-progress request using this Idempotent Key (that probably means you submitted twice, and the other request is still going through): ${key}. Please try again later.`;
  throw notKept(new StripeFault(409, { type: "idempotency_error", code: "idempotency_key_in_use", message }));
}

function idempotencyError(message: string): StripeFault {
  return notKept(new StripeFault(400, { type: "idempotency_error", message }));
}

function notKept(fault: StripeFault): StripeFault {
  fault.kept = false;
  return fault;
}
