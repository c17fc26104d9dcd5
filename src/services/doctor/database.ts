import { readDatabaseState } from "../../db/deployment.ts";
import { pingDatabase } from "../../db/health.ts";
import { planMigrations, type MigrationPlan } from "../../db/migrate.ts";
import { TRANSACTION_MS } from "../../db/timeouts.ts";
import { checkInvariants, INVARIANTS } from "../invariants.ts";
import { bad, ok, onSystem, skip, warn, type Check, type Result, type SystemScene } from "./check.ts";

const CONNECTIONS = { warn: 0.7, bad: 0.9 };
const FROM_17 = 170_000;
const DEEP_MS = 900_000;

async function checkMigrations({ deps }: SystemScene): Promise<Result> {
  let plan: MigrationPlan;
  try {
    plan = await planMigrations(deps.sql);
  } catch (error) {
    // What it says of the schema is in our own words; what Postgres says is not.
    if ((error as { code?: unknown }).code !== undefined || !(error instanceof Error)) throw error;
    return bad(error.message, "reef deploy with a release as it was published (docs/deploying.md)");
  }
  const names = plan.pending.map(({ name }) => name);
  const pending = names.length > 3 ? `${names.length} migrations, ${names[0]} to ${names.at(-1)},` : names.join(", ");
  // Not a thing for --fix: while the release before still runs, its queries would meet another schema.
  if (pending !== "")
    return bad(`${pending} not applied`, "reef deploy applies them before it starts the new processes");
  const newer = plan.newer.join(", ");
  if (newer !== "")
    return warn(`of a newer release: ${newer}`, "this one runs on it; reef deploy goes on with the newer one");
  return ok("as this release");
}

async function checkConnections({ deps }: SystemScene): Promise<Result> {
  const state = await readDatabaseState(deps.sql);
  const available = state.maxConnections - state.reservedConnections;
  const share = state.connections / available;
  const found = `${state.connections} of ${available} in use`;
  const fix = "lower DATABASE_POOL, or raise max_connections (docs/runbooks/database-full.md)";
  if (share >= CONNECTIONS.bad) return bad(found, fix);
  return share >= CONNECTIONS.warn ? warn(found, fix) : ok(found);
}

async function checkTransactions({ deps }: SystemScene): Promise<Result> {
  const { versionNumber, transactionTimeout } = await readDatabaseState(deps.sql);
  if (versionNumber < FROM_17) return ok("this Postgres has no transaction_timeout (17 and later have)");
  const isSet = transactionTimeout !== null && !["0", "0ms", ""].includes(transactionTimeout);
  if (isSet) return ok(`transactions end after ${transactionTimeout}`);
  const fix = `alter database … set transaction_timeout = ${TRANSACTION_MS}`;
  return warn("nothing ends the transaction of a client that has vanished", fix);
}

async function checkDeep({ deps, options }: SystemScene): Promise<Result> {
  if (!options.deep) return skip("only with --deep, or npm run verify");
  const findings = await checkInvariants(deps, { patienceMs: 30_000, timeoutMs: 600_000 });
  const violated = findings.filter(({ status }) => status === "violated").map(({ id }) => id);
  const unchecked = findings.filter(({ status }) => status === "unchecked").map(({ id }) => id);
  const fix = "reef verify (npm run verify) says which rows";
  if (violated.length > 0) return bad(`violated: ${violated.join(", ")}`, fix);
  return unchecked.length > 0
    ? warn(`could not be checked: ${unchecked.join(", ")}`, fix)
    : ok(`${INVARIANTS.length} invariants hold`);
}

export const DATABASE: readonly Check[] = [
  onSystem("database.answers", async ({ deps }) => {
    const began = performance.now();
    try {
      await pingDatabase(deps.sql);
    } catch (error) {
      const { code } = error as { code?: unknown };
      const why = typeof code === "string" ? code : "no answer";
      return bad(
        `it does not answer (${why}): nothing works without it`,
        "docs/runbooks/database-full.md; is DATABASE_URL right?",
      );
    }
    const ms = Math.round(performance.now() - began);
    const { bytes } = await readDatabaseState(deps.sql);
    return ok(`in ${ms} ms; it holds ${Math.round(bytes / 1024 / 1024)} MB (the room it has is its own host's)`);
  }),
  onSystem("database.migrations", checkMigrations),
  onSystem("database.connections", checkConnections),
  onSystem("database.transactions", checkTransactions),
  onSystem("database.invariants", checkDeep, { isCostly: true, limitMs: DEEP_MS }),
];
