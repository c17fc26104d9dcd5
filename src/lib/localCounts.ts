const MAX_KEYS = 10_000;

/** Counters with a lifetime, in this process: what stands in for Redis while it is away. */
export interface LocalCounts {
  /** Adds to a counter, whose lifetime begins with the first that is more than 0, and tells where it stands. */
  add(key: string, by: number, lifetimeSeconds: number): { n: number; secondsLeft: number };
  forget(key: string): void;
}

export function createLocalCounts(): LocalCounts {
  const counts = new Map<string, { n: number; untilMs: number }>();
  return {
    add(key, by, lifetimeSeconds) {
      const now = Date.now();
      let count = counts.get(key);
      if (!count || count.untilMs <= now) {
        counts.delete(key);
        if (by <= 0) return { n: 0, secondsLeft: 0 };
        // The oldest makes room: emptying all would let whoever makes up keys forget everybody's failures at once.
        const oldest = counts.size >= MAX_KEYS ? counts.keys().next().value : undefined;
        if (oldest !== undefined) counts.delete(oldest);
        count = { n: 0, untilMs: now + lifetimeSeconds * 1000 };
        counts.set(key, count);
      }
      count.n = Math.max(0, count.n + by);
      return { n: count.n, secondsLeft: Math.ceil((count.untilMs - now) / 1000) };
    },
    forget: (key) => void counts.delete(key),
  };
}
