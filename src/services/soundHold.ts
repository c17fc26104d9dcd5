import type { Deps } from "../deps.ts";
import { newId } from "../lib/ids.ts";
import { sleep } from "../lib/retry.ts";

type HoldDeps = Pick<Deps, "redis" | "clock">;

/** A process that died lets go after this long; a living one holds on. */
const HOLD_MS = 5_000;
const HOLD_ON_MS = 1_500;
const ASK_AGAIN_MS = 200;

const HOLD_ON = `if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0`;
const LET_GO = `if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0`;

/**
 * Does `work` while no other process does it for the same message: a phone that comes back sends its sound again while
 * the first is still being listened to. Only spares a provider's call, and a refusal for seconds that are reserved twice:
 * without Redis both go on, and Postgres accepts one of them. Throws when `signal` aborts.
 */
export async function holdingSound<T>(
  deps: HoldDeps,
  message: { assistantId: string; clientId: string },
  signal: AbortSignal,
  work: () => Promise<T>,
): Promise<T> {
  const { redis, clock } = deps;
  const key = `voice:${message.assistantId}:${message.clientId}`;
  const me = newId();
  const ask = () => redis.set(key, me, "PX", HOLD_MS, "NX").catch(() => "OK");
  while ((await ask()) === null) {
    await sleep(ASK_AGAIN_MS, signal, clock);
    signal.throwIfAborted();
  }
  const holdOn = () => {
    redis.eval(HOLD_ON, 1, key, me, HOLD_MS).catch(() => 0);
    timer = clock.setTimeout(holdOn, HOLD_ON_MS);
  };
  let timer = clock.setTimeout(holdOn, HOLD_ON_MS);
  try {
    return await work();
  } finally {
    clock.clearTimeout(timer);
    redis.eval(LET_GO, 1, key, me).catch(() => 0);
  }
}
