import type { Context, MiddlewareHandler } from "hono";
import { AppError } from "../lib/errors.ts";
import type { Hold, MemoryBudget } from "../lib/memoryBudget.ts";
import type { Env } from "./env.ts";

/** 25 MB at 0.7 Mbit/s. Who is slower holds memory that others wait for. */
const ARRIVES_MS = 300_000;
const RETRY_AFTER_SECONDS = 2;

/**
 * Reads a signed-in user's body before the route runs: refused by its Content-Length before a byte is read, else while it
 * comes. What requests hold at a time is bounded by `budget`; who finds no room is told to come back. Memory in use is
 * four or five times as much (a body is also decoded, looked into and sent on), and twice that until it is collected.
 */
export function takeLargeBody(budget: MemoryBudget, arrivesMs = ARRIVES_MS) {
  return (maxBytes: number): MiddlewareHandler<Env> =>
    async (c, next) => {
      const hold = budget.hold(c.get("actor").userId);
      try {
        c.set("body", await receive(c, { hold, maxBytes, arrivesMs }));
        c.set("hold", hold);
        await next();
      } finally {
        hold.release();
      }
    };
}

interface Limits {
  hold: Hold;
  maxBytes: number;
  arrivesMs: number;
}

async function receive(c: Context<Env>, limits: Limits): Promise<Uint8Array> {
  const declared = declaredBytes(c);
  if (declared !== null && declared > limits.maxBytes) throw new AppError("body_too_large");
  if (declared !== null) takeRoom(limits.hold, declared);
  const reader = c.req.raw.body?.getReader();
  if (!reader) return new Uint8Array();
  const late = AbortSignal.timeout(limits.arrivesMs);
  const stop = () => void reader.cancel().catch(() => undefined);
  late.addEventListener("abort", stop, { once: true });
  try {
    const bytes = await collect(reader, declared, limits);
    if (late.aborted) throw new AppError("body_too_slow");
    c.req.raw.signal.throwIfAborted();
    return bytes;
  } catch (error) {
    // So that what still comes is thrown away instead of kept.
    stop();
    throw error;
  } finally {
    late.removeEventListener("abort", stop);
  }
}

async function collect(
  reader: Pick<ReadableStreamDefaultReader<Uint8Array>, "read">,
  declared: number | null,
  { hold, maxBytes }: Limits,
): Promise<Uint8Array> {
  let bytes = new Uint8Array(declared ?? 0);
  let length = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return bytes.subarray(0, length);
    const total = length + value.length;
    if (total > maxBytes) throw new AppError("body_too_large");
    if (declared === null) takeRoom(hold, value.length);
    if (total > bytes.length) {
      const grown = new Uint8Array(Math.min(maxBytes, Math.max(total, 2 * bytes.length)));
      grown.set(bytes.subarray(0, length));
      bytes = grown;
    }
    bytes.set(value, length);
    length = total;
  }
}

/** Null when the body's length shows only at its end. */
function declaredBytes(c: Context<Env>): number | null {
  const text = c.req.header("content-length");
  return text === undefined || c.req.header("transfer-encoding") !== undefined ? null : Number.parseInt(text, 10) || 0;
}

/** Others hold all the memory that there is for this. */
export function noRoom(): AppError {
  const sentence = "Too many recordings are on their way right now; try again in a moment.";
  return new AppError("service_unavailable", { retry_after: RETRY_AFTER_SECONDS }, sentence);
}

function takeRoom(hold: Hold, bytes: number): void {
  if (!hold.grow(bytes)) throw noRoom();
}
