import { mkdtempSync, chmodSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { startPostgres } from "../../scripts/services/postgres.ts";
import { makeSchedule } from "./actions.ts";
import { explore, renderFailure, runSchedule, seedsFrom, shrink, type Failure } from "./explore.ts";
import { createSimulatedDatabase, openLane, type Lane } from "./lane.ts";

const help = `Runs random schedules of clients, faults and take-overs against the real engine and a real Postgres.

  npm run test:simulation -- --seeds 5000     that many schedules (default 1000)
  npm run test:simulation -- --from 7000      beginning with that seed (default 1)
  npm run test:simulation -- --seed 4711      one alone; with --trace every operation of it
  npm run test:simulation -- --mutants        plants faults in a copy of src and shows which seed catches each
  npm run test:simulation -- --mutants --only lease   those with that word in their name`;

const { values } = parseArgs({
  options: {
    seeds: { type: "string", default: "1000" },
    from: { type: "string", default: "1" },
    seed: { type: "string" },
    lanes: { type: "string", default: "4" },
    failures: { type: "string", default: "3" },
    trace: { type: "boolean", default: false },
    mutants: { type: "boolean", default: false },
    only: { type: "string", default: "" },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});
if (values.help) {
  console.log(help);
  process.exit(0);
}

const folder = mkdtempSync(join(tmpdir(), "reef-simulation-"));
chmodSync(folder, 0o711);
const own = process.env["TEST_DATABASE_URL"]
  ? null
  : await startPostgres({ dataDir: join(folder, "postgres"), durable: false, log: () => undefined });
if (own) process.env["TEST_DATABASE_URL"] = own.url;
const lanes: Lane[] = [];
let code = 1;
try {
  code = values.mutants ? await hunt() : await simulate();
} finally {
  await Promise.all(lanes.map((lane) => lane.close()));
  await own?.stop();
  rmSync(folder, { recursive: true, force: true });
}
process.exit(code);

async function hunt(): Promise<number> {
  const { huntMutants } = await import("./mutants.ts");
  return huntMutants(values.only);
}

async function simulate(): Promise<number> {
  const url = await createSimulatedDatabase();
  const count = values.seed ? 1 : Number(values.lanes);
  for (let n = 0; n < count; n++) lanes.push(await openLane(url, `lane-${n}`));
  if (values.seed) return one(Number(values.seed));
  const begun = Date.now();
  const seeds = seedsFrom(Number(values.from), Number(values.seeds));
  const { ran, failures } = await explore(lanes, seeds, Number(values.failures));
  const seconds = (Date.now() - begun) / 1000;
  if (values.json) console.log(JSON.stringify({ ran, failures: failures.map(brief) }));
  else for (const failure of failures) console.log(renderFailure(failure, await shrink(lanes[0]!, failure.schedule)));
  console.error(
    `${ran} schedules in ${seconds.toFixed(1)} s (${(ran / seconds).toFixed(1)} a second), ${failures.length} failed`,
  );
  return failures.length > 0 ? 1 : 0;
}

function brief(failure: Failure) {
  return { seed: failure.seed, after: failure.after, violations: failure.outcome.violations };
}

async function one(seed: number): Promise<number> {
  const schedule = makeSchedule(seed);
  const outcome = await runSchedule(lanes[0]!, schedule, values.trace);
  if (values.trace) console.log(outcome.trace.join("\n"));
  if (outcome.violations.length === 0) console.log(`seed ${seed} holds`);
  else
    console.log(
      renderFailure({ seed, schedule, outcome, after: 1 }, values.trace ? null : await shrink(lanes[0]!, schedule)),
    );
  return outcome.violations.length > 0 ? 1 : 0;
}
