import type { Log } from "./log.ts";
import { sleep } from "./retry.ts";

/** What aborted work may still take to put things right. */
const LAST_MS = 1_000;

/** Work that nobody waits for while the process lives; its end waits for it, then aborts what is left. */
export class InFlight {
  private readonly running = new Set<Promise<void>>();
  private readonly ending = new AbortController();

  constructor(private readonly log: Log) {}

  /** Aborts when the process won't wait any longer. */
  get signal(): AbortSignal {
    return this.ending.signal;
  }

  add(what: string, work: () => Promise<unknown>): void {
    const running = work().then(
      () => void this.running.delete(running),
      (err: unknown) => {
        this.running.delete(running);
        if (!this.signal.aborted) this.log.error({ err, work: what }, "work failed");
      },
    );
    this.running.add(running);
  }

  async stop(graceMs: number): Promise<void> {
    await this.settled(graceMs);
    this.ending.abort();
    await this.settled(LAST_MS);
  }

  /** Waits until nothing is left, at most `ms`; what is left may add more. */
  private async settled(ms: number): Promise<void> {
    const enough = new AbortController();
    const timeout = sleep(ms, enough.signal).then(() => enough.abort());
    while (this.running.size > 0 && !enough.signal.aborted) await Promise.race([Promise.all(this.running), timeout]);
    enough.abort();
  }
}
