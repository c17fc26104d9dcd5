import { monitorEventLoopDelay } from "node:perf_hooks";

const RESOLUTION_MS = 20;
const WINDOW_MS = 10_000;

export interface LoopDelay {
  /** How late timers ran, over the last ten seconds or a little more; the same for everybody who asks. */
  read(): { maxMs: number; meanMs: number };
  close(): void;
}

/** Measures how long the event loop keeps others waiting. */
export function createLoopDelay(): LoopDelay {
  const histogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  histogram.enable();
  let since = Date.now();
  let before = { maxMs: 0, meanMs: 0 };
  return {
    read() {
      const now =
        histogram.count > 0 ? { maxMs: histogram.max / 1e6, meanMs: histogram.mean / 1e6 } : { maxMs: 0, meanMs: 0 };
      const seen = {
        maxMs: Math.max(before.maxMs, now.maxMs),
        meanMs: histogram.count > 0 ? now.meanMs : before.meanMs,
      };
      if (Date.now() - since >= WINDOW_MS) {
        histogram.reset();
        since = Date.now();
        before = now;
      }
      return seen;
    },
    close: () => void histogram.disable(),
  };
}
