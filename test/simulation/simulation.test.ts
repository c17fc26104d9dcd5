import { afterAll, expect, test } from "bun:test";
import { explore, renderFailure, seedsFrom, shrink } from "./explore.ts";
import { createSimulatedDatabase, openLane, type Lane } from "./lane.ts";
import { mutants } from "./mutantList.ts";
import { findFirstCatch, mutate, withCopy } from "./mutants.ts";

/** `npm run test:simulation` runs thousands. */
const SCHEDULES = 100;
const LANES = 4;

const lanes: Lane[] = [];
afterAll(() => Promise.all(lanes.map((lane) => lane.close())));

test("random schedules of clients, faults and take-overs: what must be true is true", async () => {
  const url = await createSimulatedDatabase();
  for (let n = 0; n < LANES; n++) lanes.push(await openLane(url, `lane-${n}`));
  const { ran, failures } = await explore(lanes, seedsFrom(1, SCHEDULES), 3);
  const shown = await Promise.all(
    failures.map(async (failure, index) => renderFailure(failure, await shrink(lanes[index]!, failure.schedule))),
  );
  expect(shown).toEqual([]);
  expect(ran).toBe(SCHEDULES);
}, 240_000);

test("every mutant still fits the source (npm run test:simulation -- --mutants runs them)", () => {
  for (const mutant of mutants) expect(mutate(mutant)).not.toBe("");
});

test("a planted fault is seen", async () => {
  const planted = mutants.find((mutant) => mutant.name.startsWith("offset off by one"))!;
  const caught = await withCopy(planted, (folder) => findFirstCatch(folder, 20));
  expect(caught?.violations.length).toBeGreaterThan(0);
});
