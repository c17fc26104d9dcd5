import { writeSync } from "node:fs";
import type { Log } from "./process.ts";

/** The order of stopping: each before what it stands on. */
const order = ["application", "gateway", "Redis", "Postgres", "play shop", "scripted model"];

type Stoppable = { stop(): Promise<void>; kill(): void };

/** One `npm start`: what runs, what is waited for, and how it all ends. */
export type Run = {
  say: Log;
  /** Puts a part under this run; a restarted part takes the place of the old one. */
  add(name: string, part: Stoppable): void;
  /** Names it in the progress lines until it is there. */
  waitFor<T>(name: string, work: Promise<T>): Promise<T>;
  ready(url: string): void;
  stopping(): boolean;
  /** Stops everything in order and ends the process; never returns. The first call's code and sentence count. */
  stop(code: number, why?: string): Promise<never>;
};

// npm passes on a Ctrl-C that the terminal has sent us already: two within this time are one.
const SAME_SIGNAL_MS = 700;
const PROGRESS_MS = 2_500;

/** Makes the run and takes over SIGINT, SIGTERM and SIGHUP: once to stop in order, again to kill. */
export function createRun(): Run {
  const parts = new Map<string, Stoppable>();
  const waiting = new Set<string>();
  let since = performance.now();
  let signalledAt = 0;
  let stopped: Promise<never> | null = null;
  const seconds = () => Math.round((performance.now() - since) / 1000);
  setInterval(() => {
    if (waiting.size > 0 && seconds() >= 2)
      say(`${stopped ? "stopping" : "waiting for"} ${[...waiting].join(", ")} (${seconds()} s)`);
  }, PROGRESS_MS);

  const stopAll = async (code: number, why: string | undefined): Promise<never> => {
    if (why !== undefined) say(why);
    waiting.clear();
    since = performance.now();
    await stopInOrder(parts, waiting);
    // What was just being started dies with us.
    process.exit(code);
  };
  const stop = (code: number, why?: string) => (stopped ??= stopAll(code, why));
  const onSignal = () => {
    const now = performance.now();
    if (stopped === null) {
      signalledAt = now;
      void stop(0, "stopping");
    } else if (now - signalledAt > SAME_SIGNAL_MS) {
      for (const part of parts.values()) part.kill();
      process.exit(1);
    }
  };
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, onSignal);

  return {
    say,
    add: (name, part) => void parts.set(name, part),
    async waitFor(name, work) {
      waiting.add(name);
      const result = await work;
      if (stopped === null) waiting.delete(name);
      return result;
    },
    ready(url) {
      if (stopped === null) print(1, `ready ${url}`);
    },
    stopping: () => stopped !== null,
    stop,
  };
}

async function stopInOrder(parts: Map<string, Stoppable>, waiting: Set<string>): Promise<void> {
  for (const name of order) {
    const part = parts.get(name);
    if (part === undefined) continue;
    waiting.add(name);
    await part.stop().catch((error: unknown) => say(`${name} did not stop: ${String(error)}`));
    waiting.delete(name);
  }
}

/** Progress goes to stderr, so that stdout has the one line "ready …". */
function say(line: string): void {
  print(2, `reef: ${line}`);
}

/** The terminal may be gone: that must not keep us from stopping in order. */
function print(stream: 1 | 2, line: string): void {
  try {
    writeSync(stream, `${line}\n`);
  } catch {
    return;
  }
}
