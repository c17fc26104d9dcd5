import { realClock, type Clock, type Timer } from "./clock.ts";
import type { Log } from "./log.ts";

const MAX_BACKOFF_MS = 3_000;

export interface LoopOptions {
  name: string;
  /** Reads all state and makes the world match it. Must be idempotent. */
  run: (signal: AbortSignal) => Promise<void>;
  /** Wait after a wake-up, so that a storm is one run; the first wake-up after a quiet time runs at once. */
  debounceMs: number;
  /** A wake-up waits at most this long, however many follow it. */
  maxWaitMs: number;
  /** Runs without a wake-up this often: a lost wake-up changes only how soon. */
  resyncMs: number;
  /** After a failed run: wait this long, doubled each time up to `resyncMs` or three seconds. */
  backoffMs: number;
  log: Log;
  clock?: Clock;
}

export interface Loop {
  /** Asks for a run soon. Cheap; may be called from anywhere, at any rate. */
  wake(): void;
  /** Ends the loop; resolves when a run in progress has ended. */
  stop(): Promise<void>;
}

/**
 * A level-triggered loop: single flight, debounced, resynced, with backoff.
 * States: idle (timer set) → running → idle; a wake-up while running makes it run once more.
 */
export function startLoop(options: LoopOptions): Loop {
  const { run, debounceMs, maxWaitMs, resyncMs, backoffMs, log, name, clock = realClock } = options;
  const abort = new AbortController();
  let timer: Timer | undefined;
  let running: Promise<void> | undefined;
  let firstWakeAt: number | undefined;
  let lastRunAt = 0;
  let failures = 0;
  let leading = false;

  const schedule = (delayMs: number) => {
    clock.clearTimeout(timer);
    if (!abort.signal.aborted) timer = clock.setTimeout(fire, delayMs);
  };
  const fire = () => {
    leading = false;
    if (!running && !abort.signal.aborted) running = once().finally(after);
  };
  const once = async () => {
    firstWakeAt = undefined;
    try {
      await run(abort.signal);
      failures = 0;
    } catch (err) {
      failures += 1;
      if (!abort.signal.aborted) log.warn({ err, loop: name, failures }, "loop run failed; will try again");
    }
    lastRunAt = clock.now();
  };
  const after = () => {
    running = undefined;
    if (failures > 0) schedule(Math.min(resyncMs, MAX_BACKOFF_MS, backoffMs * 2 ** Math.min(failures - 1, 10)));
    else schedule(firstWakeAt === undefined ? resyncMs : debounceMs);
  };

  schedule(0);
  return {
    wake() {
      const now = clock.now();
      firstWakeAt ??= now;
      if (running || failures > 0 || leading) return;
      leading = firstWakeAt === now && now - lastRunAt >= debounceMs;
      // The shortest timer is a whole millisecond, which a person waiting for an answer need not wait.
      if (leading) return void setImmediate(fire);
      schedule(Math.max(0, Math.min(debounceMs, firstWakeAt + maxWaitMs - now)));
    },
    async stop() {
      abort.abort();
      clock.clearTimeout(timer);
      await running;
    },
  };
}
