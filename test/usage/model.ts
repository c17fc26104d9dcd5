import { USAGE_KINDS, type Amounts, type UsageKind } from "../../src/db/usage.ts";

export const KINDS = Object.keys(USAGE_KINDS) as UsageKind[];
export const none = (): Amounts => ({ textMessages: 0, voiceInputSeconds: 0, voiceOutputSeconds: 0, ttsCharacters: 0 });

interface Reservation {
  /** What the day is charged of each kind; 0: given back. */
  charged: Partial<Amounts>;
  limits: Amounts;
  settled: boolean;
  expires: boolean;
}

/** A line of the ledger, as it must be. */
export interface Line {
  key: string;
  kind: UsageKind;
  status: "reserved" | "committed" | "released";
  /** What counts of it. */
  charged: number;
}

/** A user's day as it must be, by what has been committed. */
export class Model {
  private readonly reservations = new Map<string, Reservation>();

  used(): Amounts {
    const sum = none();
    for (const { charged } of this.reservations.values()) for (const kind of KINDS) sum[kind] += charged[kind] ?? 0;
    return sum;
  }

  lines(): Line[] {
    return [...this.reservations].flatMap(([key, { charged, settled }]) =>
      KINDS.filter((kind) => charged[kind] !== undefined).map((kind) => {
        const status = settled ? (charged[kind]! > 0 ? "committed" : "released") : "reserved";
        return { key, kind, status, charged: charged[kind]! } as const;
      }),
    );
  }

  reserve(key: string, amounts: Partial<Amounts>, limits: Amounts, expires: boolean): void {
    this.reservations.set(key, { charged: { ...amounts }, limits, settled: false, expires });
  }

  /** What comes back of each kind; null when it was settled before, or never was. */
  settle(key: string, status: "committed" | "released", actual: Partial<Amounts>): Amounts | null {
    const found = this.reservations.get(key);
    if (!found || found.settled) return null;
    const used = this.used();
    const returned = none();
    for (const kind of KINDS) {
      const before = found.charged[kind];
      if (before === undefined) continue;
      const room = Math.max(0, found.limits[kind] - used[kind]);
      const after = status === "released" ? 0 : Math.min(actual[kind] ?? before, before + room);
      found.charged[kind] = after;
      returned[kind] = before - after;
    }
    found.settled = true;
    return returned;
  }

  keys(): string[] {
    return [...this.reservations.keys()];
  }

  /** Those that a sweep may give back. */
  expiring(): string[] {
    return [...this.reservations].filter(([, { settled, expires }]) => !settled && expires).map(([key]) => key);
  }
}
