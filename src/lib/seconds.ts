/** Sums of a recording's parts end in crumbs that nobody hears: 10.000000000000002 is ten seconds. */
export function inMilliseconds(seconds: number): number {
  return Math.round(seconds * 1000) / 1000;
}

/** As they are charged: begun ones count. */
export function wholeSeconds(seconds: number): number {
  return Math.ceil(inMilliseconds(seconds));
}

/** An age in milliseconds as an operator reads it: "90 min", "31 h". */
export function renderAge(ms: number): string {
  return ms < 2 * 3_600_000 ? `${Math.round(ms / 60_000)} min` : `${Math.round(ms / 3_600_000)} h`;
}
