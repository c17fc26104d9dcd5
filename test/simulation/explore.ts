import { makeSchedule, renderSchedule, type Schedule } from "./actions.ts";
import type { Lane } from "./lane.ts";
import { Simulation, type Outcome } from "./run.ts";

/** A schedule that shows that something is not true. */
export interface Failure {
  seed: number;
  schedule: Schedule;
  outcome: Outcome;
  /** How many schedules had run by then. */
  after: number;
}

const SHRINK_MS = 15_000;

export async function runSchedule(lane: Lane, schedule: Schedule, tracing = false): Promise<Outcome> {
  const simulation = new Simulation(lane, schedule, tracing);
  try {
    return await simulation.run();
  } catch (error) {
    return { violations: [`the simulation broke: ${String(error)}`], trace: simulation.world.trace };
  }
}

/** Runs schedules, one per lane at a time, until so many failed or seeds run out; those that failed, by seed. */
export async function explore(
  lanes: Lane[],
  seeds: Iterator<number>,
  untilFailures: number,
): Promise<{ ran: number; failures: Failure[] }> {
  const failures: Failure[] = [];
  let ran = 0;
  const work = async (lane: Lane) => {
    while (failures.length < untilFailures) {
      const next = seeds.next();
      if (next.done) return;
      const schedule = makeSchedule(next.value);
      const outcome = await runSchedule(lane, schedule);
      ran += 1;
      if (outcome.violations.length > 0) failures.push({ seed: next.value, schedule, outcome, after: ran });
    }
  };
  await Promise.all(lanes.map(work));
  return { ran, failures: failures.sort((a, b) => a.seed - b.seed) };
}

/** Leaves out what is not needed for the schedule to fail, as long as there is time. */
export async function shrink(lane: Lane, failing: Schedule): Promise<Schedule> {
  const end = Date.now() + SHRINK_MS;
  let best = failing;
  for (let size = Math.ceil(best.actions.length / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    for (let at = 0; at < best.actions.length && Date.now() < end;) {
      const fewer = { ...best, actions: best.actions.filter((_, index) => index < at || index >= at + size) };
      const outcome = await runSchedule(lane, fewer);
      if (outcome.violations.length > 0) best = fewer;
      else at += size;
    }
  }
  return best;
}

/** What to tell of a failure: how to see it again, what is not true, and the schedule. */
export function renderFailure(failure: Failure, shrunk: Schedule | null): string {
  return [
    `seed ${failure.seed}: npm run test:simulation -- --seed ${failure.seed}`,
    ...failure.outcome.violations.map((violation) => `  ✗ ${violation}`),
    renderSchedule(shrunk ?? failure.schedule),
  ].join("\n");
}

export function* seedsFrom(first: number, count: number): Generator<number> {
  for (let seed = first; seed < first + count; seed++) yield seed;
}
