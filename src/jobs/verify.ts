import { parseArgs } from "node:util";
import { ConfigError, loadConfig } from "../config.ts";
import { pingDatabase } from "../db/health.ts";
import { createDeps, type Deps } from "../deps.ts";
import { createLog } from "../lib/log.ts";
import { checkInvariants, SETTLE_MS, type Finding, type Invariant } from "../services/invariants.ts";

const help = `Checks on a running system what must always hold, and prints how many rows break each rule.

  npm run verify                    the system that "npm start" runs on <REEF_DATA_DIR or .data>, or the one that
                                    DATABASE_URL and the other settings in .env.example name
  npm run verify -- --json          the same for programs
  npm run verify -- --patience 10   how many seconds something that may be out of line for a moment is looked at
                                    again before it counts (${SETTLE_MS / 1000})

With several gateways it looks at the configuration and folder of GATEWAY_ID's; with ROLE=front at rows only.

It only reads. Exit code: 0 all hold, 1 one is violated, 2 one could not be checked.`;

/** One check of a table with very many rows. */
const CHECK_TIMEOUT_MS = 600_000;
const PROGRESS_MS = 2_000;
const CODES = { ok: 0, violated: 1, unchecked: 2 } as const;

function fail(sentence: string): never {
  console.error(`verify: ${sentence}`);
  process.exit(CODES.unchecked);
}

function readOptions() {
  try {
    const { values } = parseArgs({
      options: {
        json: { type: "boolean", default: false },
        patience: { type: "string", default: String(SETTLE_MS / 1000) },
        help: { type: "boolean", short: "h", default: false },
      },
    });
    const patience = Number(values.patience);
    if (!(patience >= 0)) throw new Error("--patience takes a number of seconds.");
    return { ...values, patienceMs: patience * 1000 };
  } catch (error) {
    return fail(`${error instanceof Error ? error.message : String(error)} See npm run verify -- --help.`);
  }
}

function connect(): Deps {
  try {
    return createDeps({ ...loadConfig(process.env), DATABASE_POOL: 2 }, createLog("silent"));
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return fail(`No running system is known here: start one (npm start), or give its settings. ${error.message}`);
  }
}

/** Says what is being looked at once it has taken two seconds, and every two from then on. */
function showProgress(): { begin: (invariant: Invariant) => void; end: () => void } {
  const began = performance.now();
  let current = "";
  const timer = setInterval(() => {
    console.error(`verify: checking ${current} (${Math.round((performance.now() - began) / 1000)} s)`);
  }, PROGRESS_MS);
  return { begin: (invariant) => void (current = invariant.id), end: () => clearInterval(timer) };
}

function worstOf(findings: Finding[]): keyof typeof CODES {
  const has = (status: Finding["status"]) => findings.some((finding) => finding.status === status);
  return has("violated") ? "violated" : has("unchecked") ? "unchecked" : "ok";
}

const count = (n: number) => n.toLocaleString("en-US");

function renderLine(finding: Finding): string {
  const mark = { ok: "ok", violated: "BAD", unchecked: "?" }[finding.status];
  const counted = finding.reason ?? `${count(finding.violations)} of ${count(finding.total)}`;
  const which = finding.samples.length > 0 ? `: ${finding.samples.join(", ")}` : "";
  const more = finding.violations > finding.samples.length ? ", …" : "";
  const head = `${mark.padEnd(4)}${finding.rule}  ${finding.id.padEnd(17)}${finding.sentence.padEnd(58)}`;
  return `${head}${counted}${which}${more}`;
}

function renderSummary(findings: Finding[]): string {
  const of = (status: Finding["status"]) => findings.filter((finding) => finding.status === status).length;
  const parts = [`${of("ok")} of ${findings.length} hold`, `${of("violated")} violated`];
  return [...parts, ...(of("unchecked") > 0 ? [`${of("unchecked")} could not be checked`] : [])].join(", ");
}

async function main(): Promise<void> {
  const options = readOptions();
  if (options.help) return console.log(help);
  const deps = connect();
  const progress = showProgress();
  const stop = async (): Promise<void> => {
    progress.end();
    await deps.close();
  };
  try {
    await pingDatabase(deps.sql);
  } catch (error) {
    await stop();
    return fail(`The database does not answer (${error instanceof Error ? error.message : String(error)}).`);
  }
  const { patienceMs } = options;
  const findings = await checkInvariants(deps, { patienceMs, timeoutMs: CHECK_TIMEOUT_MS, onBegin: progress.begin });
  await stop();
  const outcome = worstOf(findings);
  if (options.json) console.log(JSON.stringify({ outcome, checked_at: new Date().toISOString(), findings }, null, 2));
  else console.log([...findings.map(renderLine), renderSummary(findings)].join("\n"));
  process.exit(CODES[outcome]);
}

await main();
