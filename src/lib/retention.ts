/** How many of the newest days, ISO weeks and months keep their newest backup. */
export const RETENTION = { daily: 7, weekly: 4, monthly: 6 } as const;

/** A backup on the disk, as far as the retention has to know it. */
export interface KeptBackup {
  name: string;
  at: Date;
  /** "failed": the drill could not restore it. "unknown": whole, but not tried. */
  proof: "verified" | "unknown" | "failed";
  /** Somebody reads it right now. */
  inUse: boolean;
}

/**
 * The names of those that may be deleted. Kept: the newest of each of the last days, weeks and months that have one;
 * the newest of all, whatever the drill says; the newest that was verified; the newest that is not known to be bad; what is in use.
 * One that failed takes nobody's place.
 */
export function chooseDoomed(backups: readonly KeptBackup[]): string[] {
  const newestFirst = [...backups].sort((a, b) => b.at.getTime() - a.at.getTime());
  const good = newestFirst.filter(({ proof }) => proof !== "failed");
  const kept = new Set<KeptBackup | undefined>([
    newestFirst[0],
    good[0],
    newestFirst.find(({ proof }) => proof === "verified"),
    ...newestFirst.filter(({ inUse }) => inUse),
    ...newestOfEach(good, dayOf, RETENTION.daily),
    ...newestOfEach(good, weekOf, RETENTION.weekly),
    ...newestOfEach(good, monthOf, RETENTION.monthly),
  ]);
  return newestFirst.filter((backup) => !kept.has(backup)).map(({ name }) => name);
}

function newestOfEach(newestFirst: KeptBackup[], periodOf: (at: Date) => string, count: number): KeptBackup[] {
  const chosen = new Map<string, KeptBackup>();
  for (const backup of newestFirst) {
    const period = periodOf(backup.at);
    if (!chosen.has(period) && chosen.size < count) chosen.set(period, backup);
  }
  return [...chosen.values()];
}

const DAY_MS = 86_400_000;
const dayOf = (at: Date) => at.toISOString().slice(0, 10);
const monthOf = (at: Date) => at.toISOString().slice(0, 7);
/** The Monday it began with, in UTC. */
const weekOf = (at: Date) => dayOf(new Date(at.getTime() - ((at.getUTCDay() + 6) % 7) * DAY_MS));
