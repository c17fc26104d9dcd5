/** Micro-USD as the API shows it: at least two decimals, e.g. "6.99". */
export function renderUsd(microUsd: number): string {
  return (microUsd / 1_000_000).toFixed(microUsd % 10_000 === 0 ? 2 : 6);
}
