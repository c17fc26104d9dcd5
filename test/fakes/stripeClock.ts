import type { Account } from "./stripeAccount.ts";
import { addOne } from "./stripePeriods.ts";
import type { TestClock } from "./stripeState.ts";
import { runUntil } from "./stripeTime.ts";

/** Steps of a calendar, or of a clock. */
export interface Span {
  years?: number;
  months?: number;
  days?: number;
  hours?: number;
  seconds?: number;
}

export interface Clock {
  /** Seconds. */
  now(): number;
  /** Goes on to a time (seconds) or by a span, and does everything that is due on the way. Never back. */
  advance(to: Span | number): void;
  /** Does what is due by now. */
  catchUp(): void;
  advanceTestClock(account: Account, clock: TestClock, to: number): void;
}

/** Stands still until it is told to go on, or runs beside the real one from `start` (seconds). */
export function createClock(accounts: () => Account[], options: { start: number; running: boolean }): Clock {
  const real = () => Math.floor(Date.now() / 1000);
  let ahead = options.start - real();
  // While work of the past is done, it is that time.
  let pinned: number | null = options.running ? null : options.start;
  const now = () => pinned ?? real() + ahead;

  function runAll(to: number): void {
    for (const account of accounts()) {
      const from = pinned;
      runUntil(account, to, null, (at) => void (pinned = Math.max(at, from ?? 0)));
      pinned = from;
    }
  }

  return {
    now,
    advance(to) {
      const target = typeof to === "number" ? to : addSpan(now(), to);
      if (target < now()) throw new Error("the clock of Stripe does not go back");
      runAll(target);
      if (options.running) ahead = target - real();
      else pinned = target;
    },
    catchUp() {
      if (options.running) runAll(now());
    },
    advanceTestClock(account, clock, to) {
      runUntil(account, to, clock.id, (at) => void (clock.frozen_time = Math.max(clock.frozen_time, at)));
    },
  };
}

function addSpan(from: number, { years = 0, months = 0, days = 0, hours = 0, seconds = 0 }: Span): number {
  const calendar = addOne(from, "month", years * 12 + months);
  return calendar + days * 86_400 + hours * 3600 + seconds;
}
