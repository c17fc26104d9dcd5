import type { Deps } from "../deps.ts";
import type { Timer } from "../lib/clock.ts";

const LIFE_SECONDS = 3600;
/** A growing answer is written whole each time, so not more often than this. */
const WRITE_MS = 250;
/** After this long, what was said is kept, network and all. */
export const KEPT_WITHIN_MS = 2 * WRITE_MS;

/** The text so far of running answers in Redis (`turn:{turnId}:text`), for devices and processes that come late. */
export interface KeptText {
  keep(turnId: string, text: string): void;
  /** Null when Redis has none, or does not answer. */
  read(turnId: string): Promise<string | null>;
  close(): void;
}

export function textKeyOf(turnId: string): string {
  return `turn:${turnId}:text`;
}

export function createKeptText(deps: Pick<Deps, "redis" | "clock">): KeptText {
  const pending = new Map<string, { text: string | null; timer: Timer }>();
  const write = (turnId: string, text: string) => {
    deps.redis.set(textKeyOf(turnId), text, "EX", LIFE_SECONDS).catch(() => null);
    pending.set(turnId, { text: null, timer: deps.clock.setTimeout(() => writeAgain(turnId), WRITE_MS) });
  };
  const writeAgain = (turnId: string) => {
    const text = pending.get(turnId)?.text ?? null;
    pending.delete(turnId);
    if (text !== null) write(turnId, text);
  };
  return {
    keep(turnId, text) {
      const waiting = pending.get(turnId);
      if (waiting) waiting.text = text;
      else write(turnId, text);
    },
    read: (turnId) => deps.redis.get(textKeyOf(turnId)).catch(() => null),
    close() {
      for (const [turnId, { text, timer }] of pending) {
        deps.clock.clearTimeout(timer);
        if (text !== null) deps.redis.set(textKeyOf(turnId), text, "EX", LIFE_SECONDS).catch(() => null);
      }
      pending.clear();
    },
  };
}
