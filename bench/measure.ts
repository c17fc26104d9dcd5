import { readdirSync, readFileSync } from "node:fs";

/** Clock ticks per second in /proc/PID/stat: 100 on every Linux that Reef runs on. */
const TICKS = 100;

/** Milliseconds since 1970 with fractions; the same clock in every process of this machine, Node or Bun. */
export function now(): number {
  return performance.timeOrigin + performance.now();
}

/** The value below which `p` percent of the values lie; NaN when there are none. */
export function percentile(values: number[], p: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor((sorted.length * p) / 100))] ?? NaN;
}

export function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  if (sorted.length % 2 === 1) return sorted[Math.floor(middle)]!;
  return (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** The median of one figure over several rounds. */
export function medianOf<T>(rounds: T[], figure: (round: T) => number): number {
  return median(rounds.map(figure));
}

/** Processor seconds that a process has used, in user code and in the kernel, with all its threads. */
export function cpuSeconds(pid: number): number {
  const fields = statOf(pid);
  return (Number(fields[11]) + Number(fields[12])) / TICKS;
}

/** The same for a process and its children, e.g. Postgres with its connections. One that ends in between is missed. */
export function cpuSecondsOfTree(pid: number): number {
  let sum = cpuSeconds(pid);
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    try {
      if (Number(statOf(Number(name))[1]) === pid) sum += cpuSeconds(Number(name));
    } catch {
      continue; // it has ended
    }
  }
  return sum;
}

// The name in brackets may hold spaces: fields are counted from behind it, the state is field 0.
function statOf(pid: number): string[] {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
}

/** Resident memory of a process in bytes, without what it shares with others. */
export function memoryBytes(pid: number): number {
  const text = readFileSync(`/proc/${pid}/smaps_rollup`, "utf8");
  const kilobytes = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, "m").exec(text)?.[1] ?? 0);
  return (kilobytes("Private_Clean") + kilobytes("Private_Dirty")) * 1024;
}

/** Prints rows under their heads, text to the left and numbers to the right. */
export function printTable(heads: string[], rows: (string | number)[][]): void {
  const cells = [heads, ...rows.map((row) => row.map(String))];
  const widths = heads.map((_, column) => Math.max(...cells.map((row) => row[column]!.length)));
  for (const row of cells) {
    console.log(row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join("  "));
  }
}

/** A number with as many digits as it is worth. */
export function short(value: number): string {
  if (!Number.isFinite(value)) return "–";
  return Math.abs(value) >= 100 ? String(Math.round(value)) : value.toFixed(Math.abs(value) >= 10 ? 1 : 2);
}

/** A ratio and whether it reaches its aim; an aim is never asserted, only shown. */
export function verdict(what: string, value: number, aim: string, reached: boolean): string {
  return `${what}: ${short(value)} (aim ${aim}: ${reached ? "reached" : "MISSED"})`;
}
