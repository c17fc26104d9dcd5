import {
  abortedFrame,
  closingFrames,
  historyRows,
  openingFrames,
  textFrames,
  type OpenFrame,
  type RunFrames,
} from "./loadFrames.ts";

/** How much a recipient may have waiting before the model makes a pause. */
const FULL_BYTES = 1024 * 1024;

export interface Outlet {
  emit(sessionKey: string, frames: OpenFrame[]): void;
  waiting(sessionKey: string): number;
}

interface Run extends RunFrames {
  asked: string;
  chunks: number;
  everyMs: number;
  filler: string;
  /** Words instead of times: every tenth ends a sentence. */
  words: boolean;
  startedAt: number;
  sent: number;
  text: string;
  aborted: boolean;
}

/**
 * The runs of the load gateway. A message says what its answer is to be: `chunks=200 every=0 size=24`. Every chunk
 * carries the time at which it was made, between bars, so that whoever reads it knows how long it took; with `words=1`
 * it is a word, and ten are a sentence.
 */
export function createRuns(outlet: Outlet) {
  const running = new Map<string, Run>();
  const finished = new Set<string>();
  const rows = new Map<string, string[]>();

  const step = (run: Run): void => {
    if (run.aborted) return;
    if (run.sent === run.chunks) return finish(run);
    if (outlet.waiting(run.sessionKey) > FULL_BYTES) return void setTimeout(step, 1, run);
    const stamp = () => `|${(performance.timeOrigin + performance.now()).toFixed(3)}|${run.filler}`;
    const delta = run.words ? wordOf(run.sent) : stamp();
    run.text += delta;
    run.sent += 1;
    outlet.emit(run.sessionKey, textFrames(run, run.sent + 3, run.text, delta));
    // By the clock, not after the last one: delays must not add up to a lower rate.
    if (run.everyMs > 0) setTimeout(step, run.startedAt + run.sent * run.everyMs - performance.now(), run);
    else setImmediate(step, run);
  };
  const finish = (run: Run): void => {
    running.delete(run.runId);
    finished.add(run.runId);
    const kept = rows.get(run.sessionKey) ?? [];
    rows.set(run.sessionKey, kept);
    kept.push(...historyRows(run, kept.length + 1, run.asked, run.text));
    outlet.emit(run.sessionKey, closingFrames(run, run.sent + 4, run.text));
  };
  const begin = (run: Run): void => {
    outlet.emit(run.sessionKey, openingFrames(run));
    step(run);
  };

  return {
    send(sessionKey: string, message: string, key: string): string {
      const status = running.has(key) ? "in_flight" : finished.has(key) ? "ok" : "started";
      if (status === "started") {
        const wish = (name: string, usual: number) => Number(new RegExp(`${name}=(\\d+)`).exec(message)?.[1] ?? usual);
        const run: Run = {
          runId: key,
          sessionKey,
          agentId: sessionKey.split(":")[1] ?? "",
          asked: message,
          chunks: wish("chunks", 1),
          everyMs: wish("every", 0),
          filler: "x".repeat(Math.max(0, wish("size", 24) - 19)),
          words: wish("words", 0) === 1,
          startedAt: performance.now(),
          sent: 0,
          text: "",
          aborted: false,
        };
        running.set(key, run);
        // The answer to `chat.send` goes out first.
        setImmediate(begin, run);
      }
      return `{"runId":"${key}","status":"${status}"}`;
    },
    abort(sessionKey: string, runId: string): string {
      const run = running.get(runId);
      if (!run) return `{"ok":true,"aborted":false,"runIds":[]}`;
      run.aborted = true;
      running.delete(runId);
      outlet.emit(sessionKey, [abortedFrame(run, run.sent + 4)]);
      return `{"ok":true,"aborted":true,"runIds":["${runId}"]}`;
    },
    history(sessionKey: string, limit: number): string {
      return `{"sessionKey":"${sessionKey}","messages":[${(rows.get(sessionKey) ?? []).slice(-limit).join(",")}]}`;
    },
  };
}

function wordOf(n: number): string {
  return n % 10 === 0 ? "Words " : n % 10 === 9 ? "end. " : "follow ";
}
