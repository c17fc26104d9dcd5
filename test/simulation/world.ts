import type { Clock, Timer } from "../../src/lib/clock.ts";
import type { Lane } from "./lane.ts";
import type { Random } from "./random.ts";

/** Whose an operation is: nothing of a dead one ever happens, nothing of one that stands still happens for now. */
export interface Owner {
  name: string;
  dead: boolean;
  frozen: boolean;
}

/** Something that may happen next. Operations of one channel happen in order, others in any. */
export interface Operation {
  channel: string;
  owner: Owner;
  label: string;
  weight?: number;
  run(): unknown;
}

interface SetTimer {
  owner: Owner;
  due: number;
  order: number;
  run: () => void;
}

const LOOK_AT_LOCKS_MS = 1;
const STUCK_MS = 20_000;

/**
 * The time, and all that may happen next. One operation happens at a time: the next is drawn when the last one has
 * ended, with all that followed from it, or waits for a lock in Postgres that another operation must give back.
 */
export class World {
  now: number;
  readonly trace: string[] = [];
  readonly outside: Owner = { name: "outside", dead: false, frozen: false };
  private readonly channels = new Map<string, Operation[]>();
  private readonly running = new Set<Promise<unknown>>();
  private timers: SetTimer[] = [];
  private count = 0;

  constructor(
    private readonly lane: Lane,
    startsAt: number,
    readonly tracing: boolean,
  ) {
    this.now = startsAt;
  }

  note(line: () => string): void {
    if (this.tracing) this.trace.push(`${this.now % 1_000_000}  ${line()}`);
  }

  unique(name: string): string {
    return `${name}#${++this.count}`;
  }

  add(operation: Operation): void {
    const waiting = this.channels.get(operation.channel);
    if (waiting) waiting.push(operation);
    else this.channels.set(operation.channel, [operation]);
  }

  /** Takes back what has not happened yet. */
  drop(channel: string): void {
    this.channels.delete(channel);
  }

  /** The clock as one process sees it; its timers end with it, and are late when it stood still. */
  clockOf(owner: Owner): Clock {
    return {
      now: () => this.now,
      setTimeout: (run, ms) => {
        const timer: SetTimer = { owner, due: this.now + ms, order: ++this.count, run };
        if (!owner.dead) this.timers.push(timer);
        return timer;
      },
      clearTimeout: (timer: Timer | undefined) => {
        const at = this.timers.indexOf(timer as SetTimer);
        if (at >= 0) this.timers.splice(at, 1);
      },
    };
  }

  /** What goes on in Postgres by itself, e.g. a rollback: waited for before the next operation. */
  track(work: Promise<unknown>): void {
    const tracked: Promise<unknown> = work.then(
      () => this.running.delete(tracked),
      () => this.running.delete(tracked),
    );
    this.running.add(tracked);
  }

  /** Lets up to `most` operations happen; false when nothing was left before that. */
  async run(random: Random, most: number): Promise<boolean> {
    for (let n = 0; n < most; n++) {
      const operation = this.draw(random);
      if (!operation) return false;
      this.note(() => `${operation.owner.name}: ${operation.label}`);
      const result = operation.run();
      if (result instanceof Promise) this.track(result);
      await this.quiet();
    }
    return true;
  }

  /** All timers of one that are due now, before anything else. */
  async runTimersOf(owner: Owner): Promise<void> {
    for (let last = this.count, due = this.dueOf(owner, last); due; due = this.dueOf(owner, last)) {
      this.note(() => `${owner.name}: timer`);
      due();
      await this.quiet();
    }
  }

  async advance(ms: number): Promise<void> {
    this.now += ms;
    await this.lane.setTime(this.now);
  }

  /** Waits until nothing moves by itself any more. */
  async quiet(): Promise<void> {
    const end = Date.now() + STUCK_MS;
    for (;;) {
      await immediate();
      if (this.running.size === 0) return;
      const looked = Promise.withResolvers<"look">();
      const timer = setTimeout(() => looked.resolve("look"), LOOK_AT_LOCKS_MS);
      const first = await Promise.race([...this.running, looked.promise]);
      clearTimeout(timer);
      if (first !== "look") continue;
      if ((await this.lane.waitingForLocks()) >= this.running.size && this.running.size > 0) return;
      if (Date.now() > end) throw new Error("the simulation is stuck: a query neither ends nor waits for a lock");
    }
  }

  /** Whether nothing can happen before time goes on. */
  idle(): boolean {
    return this.heads().length === 0;
  }

  private heads(): Operation[] {
    this.forgetDead();
    const heads: Operation[] = [];
    for (const [channel, waiting] of this.channels) {
      while (waiting[0]?.owner.dead) waiting.shift();
      if (waiting.length === 0) this.channels.delete(channel);
      else if (!waiting[0]!.owner.frozen) heads.push(waiting[0]!);
    }
    heads.push(...this.dueTimers());
    return heads;
  }

  private draw(random: Random): Operation | null {
    const heads = this.heads();
    if (heads.length === 0) return null;
    const drawn = random.weighted(heads, (head) => head.weight ?? 10);
    this.channels.get(drawn.channel)?.shift();
    return drawn;
  }

  /** Of each process the timer that is due first. */
  private dueTimers(): Operation[] {
    const owners = new Set(this.timers.map((timer) => timer.owner));
    return [...owners].flatMap((owner) => {
      const run = owner.frozen ? null : this.dueOf(owner, this.count);
      return run ? [{ channel: "timers", owner, label: "timer", run }] : [];
    });
  }

  /** The first timer of one that is due, of those that were set when `last` was. */
  private dueOf(owner: Owner, last: number): (() => void) | null {
    const [first] = this.timers
      .filter((timer) => timer.owner === owner && timer.due <= this.now && timer.order <= last)
      .sort((a, b) => a.due - b.due || a.order - b.order);
    if (!first) return null;
    return () => {
      this.timers.splice(this.timers.indexOf(first), 1);
      first.run();
    };
  }

  private forgetDead(): void {
    if (this.timers.some((timer) => timer.owner.dead)) this.timers = this.timers.filter((timer) => !timer.owner.dead);
  }
}

function immediate(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
