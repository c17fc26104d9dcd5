import type { Price } from "./stripeState.ts";

type Interval = { interval: string; interval_count: number };

/** Seconds. A month later is the same day, or the month's last one. */
function addIntervals(from: number, { interval, interval_count: count }: Interval, times: number): number {
  const steps = count * times;
  if (interval === "day") return from + steps * 86_400;
  if (interval === "week") return from + steps * 7 * 86_400;
  const date = new Date(from * 1000);
  const months = date.getUTCMonth() + steps * (interval === "year" ? 12 : 1);
  const lastDay = new Date(Date.UTC(date.getUTCFullYear(), months + 1, 0)).getUTCDate();
  const day = Math.min(date.getUTCDate(), lastDay);
  const start = Date.UTC(date.getUTCFullYear(), months, day);
  return Math.floor(start / 1000) + (from % 86_400);
}

/** The first end of a period after `after`, counted from the anchor, so that the 31st comes back after February. */
export function periodEnd(anchor: number, price: Price, after: number): number {
  const recurring = price.recurring;
  if (!recurring) throw new Error(`price ${price.id} does not recur`);
  for (let times = 1; ; times += 1) {
    const end = addIntervals(anchor, recurring, times);
    if (end > after) return end;
  }
}

/** Seconds: one interval later. */
export function addOne(from: number, interval: "month" | "year" | "day" | "week", count = 1): number {
  return addIntervals(from, { interval, interval_count: count }, 1);
}

/** What a part of a period costs, in minor units. */
export function shareOf(amount: number, period: { start: number; end: number }, from: number): number {
  const whole = period.end - period.start;
  return whole <= 0 ? 0 : Math.round((amount * Math.max(0, period.end - from)) / whole);
}
