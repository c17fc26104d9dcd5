import { notify } from "../db/notify.ts";
import type { Deps } from "../deps.ts";
import { startLoop, type Loop } from "../lib/loop.ts";
import { sleep } from "../lib/retry.ts";

const BEAT_MS = 3_000;
/** Longer than a busy Postgres takes for a notice, shorter than a person waits. */
const UNHEARD_MS = 6_000;

/**
 * Finds connections to Postgres that are dead but look alive (a router forgot them, the other host lost its power): a
 * query on one waits for ever, a notice never comes. Sends itself a notice on a connection of its own; unless it is
 * heard on the one that listens, all connections are severed, and new ones are opened.
 */
export function createDatabaseWatch(deps: Pick<Deps, "watchSql" | "severDatabase" | "log" | "processId">) {
  let hear: () => void = () => undefined;
  const beat = async (signal: AbortSignal) => {
    const heard = new Promise<void>((resolve) => (hear = resolve));
    const over = new AbortController();
    const asked = notify(deps.watchSql, "beat", deps.processId).then(() => heard);
    const unheard = sleep(UNHEARD_MS, AbortSignal.any([signal, over.signal]));
    try {
      const inTime = await Promise.race([asked.then(() => true), unheard.then(() => false)]);
      if (inTime || signal.aborted) return;
      deps.log.warn("a notice of our own is not heard; opening all connections to Postgres anew");
      deps.severDatabase();
    } finally {
      over.abort();
    }
  };
  let loop: Loop | undefined;
  return {
    /** Call it when somebody listens; before that nothing could be heard. */
    begin() {
      loop = startLoop({
        name: "database watch",
        run: beat,
        debounceMs: BEAT_MS,
        maxWaitMs: BEAT_MS,
        resyncMs: BEAT_MS,
        backoffMs: BEAT_MS,
        log: deps.log,
      });
    },
    heard: (processId: string) => processId === deps.processId && hear(),
    stop: () => loop?.stop(),
  };
}
