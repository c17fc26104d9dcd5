import type { Queryable } from "../../src/db/connect.ts";
import type { ProcessDeps, UsageProcess } from "./process.ts";

/** Somebody let it go on for the last time. */
class Abandoned extends Error {}

/** Postgres ends the transaction of one that stands still for seconds, as it does on a machine that is very busy. */
const STOOD_STILL = ["25P03", "CONNECTION_CLOSED", "CONNECTION_ENDED", "CONNECTION_DESTROYED"];
const hasStoodStill = (error: unknown) => STOOD_STILL.includes(String((error as { code?: unknown } | null)?.code));

/**
 * Something a process does, that stops wherever it might be overtaken, and goes on when it is told to: before each word to
 * Redis and between the parts of a transaction.
 */
export class Task {
  /** Where it stands; null while it runs. */
  place: string | null = "begin";
  over = false;
  /** The connection of its transaction, to see whether it waits for a lock. */
  backend: number | null = null;
  /** Whether Redis has not answered it. */
  untold = false;
  readonly deps: ProcessDeps;
  private go = Promise.withResolvers<void>();
  private halted = Promise.withResolvers<void>();
  private failure: unknown;

  constructor(
    readonly name: string,
    readonly process: UsageProcess,
    body: (task: Task) => Promise<void>,
  ) {
    this.deps = process.depsOf({ before: () => this.pause("redis"), failed: () => (this.untold = true) });
    const done = this.go.promise.then(() => body(this));
    done
      .catch((error: unknown) => {
        if (!(error instanceof Abandoned) && !hasStoodStill(error) && !process.dead) this.failure = error;
      })
      .finally(() => {
        this.over = true;
        this.halted.resolve();
      })
      .catch(() => undefined);
  }

  /** Stops here until somebody lets it go on. */
  async pause(place: string): Promise<void> {
    if (this.process.dead) throw new Abandoned();
    // What it does after its end is not held up.
    if (this.over) return;
    this.go = Promise.withResolvers();
    this.place = place;
    this.halted.resolve();
    await this.go.promise;
  }

  /** Lets it go on; resolves when it has stopped again, or is over. */
  resume(): void {
    this.place = null;
    this.halted = Promise.withResolvers();
    this.go.resolve();
  }

  /** Its process is dead. */
  abandon(): void {
    this.over = true;
    this.go.promise.catch(() => undefined);
    this.go.reject(new Abandoned());
    this.halted.resolve();
  }

  /** When it has stopped, or is over. Throws what it should not have thrown. */
  async stopped(): Promise<void> {
    await this.halted.promise;
    if (this.failure !== undefined) throw this.failure;
  }

  /** Names the connection that its transaction has. */
  async meet(sql: Queryable): Promise<void> {
    const [row] = await sql<{ pid: number }[]>`select pg_backend_pid() as pid`;
    this.backend = row!.pid;
  }
}
