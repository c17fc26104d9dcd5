import { createRandom } from "../simulation/random.ts";
import { lateRefusal, lateUpgrade, overrun, untoldReturn } from "./scenes.ts";
import { Violation, Run, type Lane } from "./run.ts";
import {
  changeLimits,
  changePlan,
  drain,
  emptyRedis,
  finishOne,
  kill,
  letTimePass,
  LIMITS,
  mendNetwork,
  probe,
  reserve,
  restartRedis,
  resume,
  setLimits,
  settle,
  sweep,
  troubleNetwork,
} from "./steps.ts";

const PROCESSES = 2;
/** One run of `steps` steps; what happened in it, counted. Throws a Violation that names the seed and the last steps. */
export async function explore(lane: Lane, seed: number, steps: number): Promise<Record<string, number>> {
  const random = createRandom("usage", seed);
  for (const [plan, limits] of Object.entries(LIMITS)) await setLimits(lane.sql, plan, limits);
  const run = await Run.begin(lane, random, PROCESSES);
  const trace: string[] = [];
  try {
    for (let step = 0; step < steps; step++) {
      trace.push(await act(run));
      await run.look();
    }
    trace.push("end");
    await finish(run);
    return run.counts;
  } catch (error) {
    const what = error instanceof Violation ? error.message : error instanceof Error ? error.stack : String(error);
    throw new Violation(`seed ${seed}, step ${trace.length}: ${what}\n  ${trace.slice(-25).join("\n  ")}`);
  } finally {
    await run.end();
  }
}

type Action = (run: Run) => Promise<string | null> | string | null;

/** What may happen next, by how often it should; the second number where somebody is just about to tell Redis. */
const ACTIONS: [weight: number, telling: number, act: Action][] = [
  [16, 8, reserve],
  [14, 14, probe],
  [7, 7, settle],
  [30, 10, resume],
  [20, 20, finishOne],
  [2, 2, sweep],
  [1.5, 8, changePlan],
  [0.5, 1, changeLimits],
  [0.7, 2, emptyRedis],
  [3, 3, troubleNetwork],
  [5, 5, mendNetwork],
  [0.5, 1, restartRedis],
  [0.5, 1, kill],
  [4, 0, letTimePass],
  [0.6, 0.6, lateRefusal],
  [0.6, 0.6, lateUpgrade],
  [0.6, 0.6, untoldReturn],
  [0.6, 0.6, overrun],
];

async function act(run: Run): Promise<string> {
  for (;;) {
    const telling = run.isOnItsWay();
    const [, , chosen] = run.random.weighted(ACTIONS, ([usual, then]) => (telling ? then : usual));
    const done = await chosen(run);
    if (done !== null) return done;
  }
}

/** Everything that was begun ends, every reservation runs out: then a sweep, of whatever process, leaves nothing. */
async function finish(run: Run): Promise<void> {
  for (const process of run.processes) await process.mend();
  await drain(run);
  await run.letTimePass(310_000);
  run.sweep(run.random.pick(run.processes));
  await drain(run);
  await run.lookForExpired();
}
