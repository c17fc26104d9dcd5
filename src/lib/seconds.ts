/** Sums of a recording's parts end in crumbs that nobody hears: 10.000000000000002 is ten seconds. */
export function inMilliseconds(seconds: number): number {
  return Math.round(seconds * 1000) / 1000;
}

/** As they are charged: begun ones count. */
export function wholeSeconds(seconds: number): number {
  return Math.ceil(inMilliseconds(seconds));
}
