import { realClock, type Clock } from "./clock.ts";

/** Milliseconds to wait before attempt number `attempt` (0, 1, …): doubling, capped, with full jitter. */
export function backoffDelay(attempt: number, baseMs: number, capMs: number): number {
  const ceiling = Math.min(capMs, baseMs * 2 ** Math.min(attempt, 20));
  return Math.round(ceiling / 2 + Math.random() * (ceiling / 2));
}

/** Resolves after `ms`, or at once when `signal` aborts. Never rejects. */
export function sleep(ms: number, signal?: AbortSignal, clock: Clock = realClock): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const done = () => {
      clock.clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = clock.setTimeout(done, ms);
    signal?.addEventListener("abort", done);
  });
}

/** `promise`, or a rejection that names `what` when it has not settled within `ms`. */
export function withDeadline<T>(promise: Promise<T>, ms: number, what: string): Promise<T> {
  const deadline = Promise.withResolvers<never>();
  const timer = setTimeout(() => deadline.reject(new Error(`${what} took longer than ${ms} ms`)), ms);
  return Promise.race([promise, deadline.promise]).finally(() => clearTimeout(timer));
}

/**
 * Asks until there is an answer, with pauses from 100 ms to two seconds; null when `signal` aborted first. `onFailure`
 * hears of every tenth failure.
 */
export async function askUntilAnswered<T>(
  ask: () => Promise<T>,
  signal: AbortSignal,
  onFailure: (error: unknown) => void,
  clock: Clock = realClock,
): Promise<T | null> {
  for (let tries = 0; !signal.aborted; tries++) {
    try {
      return await ask();
    } catch (error) {
      if (tries % 10 === 0) onFailure(error);
      await sleep(Math.min(2000, 100 * 2 ** tries), signal, clock);
    }
  }
  return null;
}
