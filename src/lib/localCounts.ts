const MAX_KEYS = 10_000;

/** Counters with a lifetime, in this process: what stands in for Redis while it is away. */
export interface LocalCounts {
  add(key: string, lifetimeSeconds: number): void;
  read(key: string): { n: number; secondsLeft: number };
  forget(key: string): void;
}

export function createLocalCounts(): LocalCounts {
  const counts = new Map<string, { n: number; untilMs: number }>();
  const living = (key: string) => {
    const count = counts.get(key);
    return count && count.untilMs > Date.now() ? count : undefined;
  };
  return {
    add(key, lifetimeSeconds) {
      const count = living(key);
      if (count) count.n += 1;
      else {
        if (counts.size >= MAX_KEYS) counts.clear();
        counts.set(key, { n: 1, untilMs: Date.now() + lifetimeSeconds * 1000 });
      }
    },
    read(key) {
      const count = living(key);
      return count ? { n: count.n, secondsLeft: (count.untilMs - Date.now()) / 1000 } : { n: 0, secondsLeft: 0 };
    },
    forget: (key) => void counts.delete(key),
  };
}
