import { expect, test } from "bun:test";
import { chooseDoomed, type KeptBackup } from "../../src/lib/retention.ts";

const DAY_MS = 86_400_000;
const START = Date.UTC(2026, 0, 1, 2);

type Proof = KeptBackup["proof"];
const backup = (day: number, proof: Proof = "unknown", inUse = false): KeptBackup => {
  const at = new Date(START + day * DAY_MS);
  return { name: at.toISOString(), at, proof, inUse };
};

/** Years of daily runs, the retention after each; `run` says what becomes of a day's backup, null: there is none. */
function live(days: number, run: (day: number) => KeptBackup | null, look: (kept: KeptBackup[], day: number) => void) {
  let kept: KeptBackup[] = [];
  for (let day = 0; day < days; day++) {
    const made = run(day);
    if (made) kept.push(made);
    const doomed = new Set(chooseDoomed(kept));
    kept = kept.filter(({ name }) => !doomed.has(name));
    look(kept, day);
  }
  return kept;
}

const names = (kept: KeptBackup[]) => kept.map(({ name }) => name.slice(0, 10)).sort();

test("after three years: 7 days, 4 weeks, 6 months, of each the newest", () => {
  const kept = live(
    3 * 365,
    (day) => backup(day),
    () => undefined,
  );
  // The last day is 2028-12-30, a Saturday: the newest of a week is its Sunday, of a month its last day.
  expect(names(kept)).toEqual([
    "2028-07-31",
    "2028-08-31",
    "2028-09-30",
    "2028-10-31",
    "2028-11-30",
    "2028-12-10",
    "2028-12-17",
    ...[24, 25, 26, 27, 28, 29, 30].map((day) => `2028-12-${day}`),
  ]);
});

test("at every day of years: yesterday's is there, one of the week before, one of each month", () => {
  live(
    900,
    (day) => backup(day),
    (kept, day) => {
      const ages = kept.map(({ at }) => (START + day * DAY_MS - at.getTime()) / DAY_MS);
      for (let age = 0; age <= Math.min(day, 6); age++) expect(ages).toContain(age);
      if (day > 27) expect(ages.some((age) => age >= 14 && age <= 28)).toBe(true);
      if (day > 180) expect(Math.max(...ages)).toBeGreaterThan(120);
      expect(kept.length).toBeLessThanOrEqual(17);
    },
  );
});

test("bad backups push out no good one, however many follow", () => {
  const proofs = (day: number): Proof => (day === 20 ? "verified" : day < 20 ? "unknown" : "failed");
  live(
    400,
    (day) => backup(day, proofs(day)),
    (kept, day) => {
      if (day >= 20) expect(kept.some(({ proof }) => proof === "verified")).toBe(true);
      // The newest may be looked at by somebody.
      expect(kept.at(-1)?.at.getTime()).toBe(START + day * DAY_MS);
      if (day > 25) expect(kept.filter(({ proof }) => proof !== "failed").length).toBeGreaterThanOrEqual(7);
    },
  );
});

test("a single one is never deleted, good or bad, nor the last one that was verified", () => {
  for (const proof of ["verified", "unknown", "failed"] as const) expect(chooseDoomed([backup(0, proof)])).toEqual([]);
  const verified = backup(0, "verified");
  const later = Array.from({ length: 300 }, (_, day) => backup(day + 1));
  expect(chooseDoomed([verified, ...later])).not.toContain(verified.name);
});

test("what is in use stays", () => {
  const used = backup(3, "unknown", true);
  const all = [backup(0), used, ...Array.from({ length: 40 }, (_, day) => backup(day + 4))];
  expect(chooseDoomed(all)).not.toContain(used.name);
  expect(chooseDoomed(all.map((one) => ({ ...one, inUse: false })))).toContain(used.name);
});

test("several of one day: the newest is kept", () => {
  const at = (hour: number) => ({ ...backup(0), name: `h${hour}`, at: new Date(START + hour * 3_600_000) });
  expect(chooseDoomed([at(1), at(3), at(2)])).toEqual(["h2", "h1"]);
});
