import { hostname } from "node:os";
import { parseArgs } from "node:util";
import { createHost, readPins } from "../clients/host.ts";
import { ownAddresses } from "../clients/hostNetwork.ts";
import { ConfigError, loadConfig } from "../config.ts";
import { createDeps, type Deps } from "../deps.ts";
import { createLog } from "../lib/log.ts";
import { GROUPS, type Check, type Group, type Scene } from "../services/doctor/check.ts";
import { CHECKS } from "../services/doctor/list.ts";
import { INNER_PORTS } from "../services/doctor/network.ts";
import { findPlace } from "../services/doctor/place.ts";
import { runChecks, type Finding } from "../services/doctor/runChecks.ts";

const help = `The checklist of a deployment, checked: what was found, and for what is wrong one command or sentence that mends it.

  npm run doctor                    the system that "npm start" runs on <REEF_DATA_DIR or .data>
  reef doctor                       on a server, as root (as reef it sees less)
  … --only gateway,jobs             these groups: ${GROUPS.slice(0, 8).join(", ")},
                                    ${GROUPS.slice(8).join(", ")}
  … --quick                         without what costs: real chats, voice, invariants
  … --deep                          with the invariants of "npm run verify"
  … --alarm                         sends a test alarm
  … --fix                           mends what is safe to mend by itself: modes and owners of our files, missing folders,
                                    timers that are off, failed units' counters, a certificate that is due. Deletes
                                    nothing and restarts nothing
  … --fix --dry-run                 only says what it would do
  … --json                          for programs

What does not apply here is skipped, with its reason. Real chats are those of accounts made for it, which are deleted again.
Exit code: 0 nothing is bad (warnings may be), 1 something is, 2 it, or one of the checks, could not be run.`;

const PROGRESS_MS = 2_000;
const SCHEMA = 1;

function fail(sentence: string): never {
  console.error(`doctor: ${sentence}`);
  process.exit(2);
}

function readOptions() {
  try {
    const flag = { type: "boolean", default: false } as const;
    const { values } = parseArgs({
      options: {
        only: { type: "string" },
        quick: flag,
        deep: flag,
        alarm: flag,
        fix: flag,
        "dry-run": flag,
        json: flag,
        help: { ...flag, short: "h" },
      },
    });
    const only = values.only?.split(",").map((name) => name.trim()) ?? null;
    const strange = only?.find((name) => !GROUPS.includes(name as Group));
    if (strange !== undefined) throw new Error(`There is no group "${strange}"; there are ${GROUPS.join(", ")}.`);
    if (values["dry-run"] && !values.fix) throw new Error("--dry-run goes with --fix.");
    return { ...values, dryRun: values["dry-run"], only };
  } catch (error) {
    return fail(`${error instanceof Error ? error.message : String(error)} See --help.`);
  }
}
type Options = ReturnType<typeof readOptions>;

/** Null: there are settings, and they can't be read. */
function connect(): Deps | null {
  try {
    return createDeps({ ...loadConfig(process.env), DATABASE_POOL: 4 }, createLog("silent"));
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    if (!process.env["DATABASE_URL"]?.trim())
      return fail("No running system is known here: start one (npm start), or give its settings (sudo reef doctor).");
    console.error(`doctor: ${error.message}`);
    return null;
  }
}

/** Settings that can't be read are always among it: all that needs them is skipped, and that must not be taken for well. */
function choose(options: Options, canRead: boolean): Check[] {
  const { only, quick, deep } = options;
  return CHECKS.filter(({ group, isCostly, id }) => {
    if (!canRead && id === "settings.readable") return true;
    const wanted = !quick || !isCostly || (deep && id === "database.invariants");
    return wanted && (only === null || only.includes(group));
  });
}

const MARKS = { ok: "ok", warn: "warn", bad: "BAD", skipped: "-", unchecked: "?" } as const;

function renderLine({ id, status, found, fix, repaired }: Finding, dryRun: boolean): string {
  const lines = [`${MARKS[status].padEnd(5)}${id.padEnd(30)} ${found}`];
  if (repaired !== null) lines.push(`${" ".repeat(36)}${dryRun ? "would fix" : "fixed"}: ${repaired}`);
  if (fix !== null && (repaired === null || !dryRun)) lines.push(`${" ".repeat(36)}fix: ${fix}`);
  return lines.join("\n");
}

/** What was skipped, by reason: on a trial that is most of it. */
function renderSkipped(findings: Finding[]): string[] {
  const skipped = findings.filter(({ status }) => status === "skipped");
  return [...Map.groupBy(skipped, ({ found }) => found)].map(
    ([reason, its]) => `${MARKS.skipped.padEnd(5)}skipped, ${reason}: ${its.map(({ id }) => id).join(", ")}`,
  );
}

function countOf(findings: Finding[], status: Finding["status"]): number {
  return findings.filter((finding) => finding.status === status).length;
}

function renderSummary(findings: Finding[]): string {
  const of = (status: Finding["status"]) => countOf(findings, status);
  const unchecked = of("unchecked") > 0 ? [`${of("unchecked")} could not be checked`] : [];
  return [`${of("ok")} ok`, `${of("warn")} warn`, `${of("bad")} bad`, ...unchecked, `${of("skipped")} skipped`].join(
    ", ",
  );
}

function outcomeOf(findings: Finding[]): "ok" | "bad" | "unchecked" {
  if (countOf(findings, "bad") > 0) return "bad";
  return countOf(findings, "unchecked") > 0 ? "unchecked" : "ok";
}

/** Says what is still being looked at, every two seconds. */
function showProgress() {
  const current = new Set<string>();
  const began = performance.now();
  const timer = setInterval(() => {
    const seconds = Math.round((performance.now() - began) / 1000);
    if (current.size > 0) console.error(`doctor: checking ${[...current].join(", ")} (${seconds} s)`);
  }, PROGRESS_MS);
  return {
    begin: (id: string) => void current.add(id),
    done: (finding: Finding) => void current.delete(finding.id),
    end: () => clearInterval(timer),
  };
}

async function main(): Promise<void> {
  const options = readOptions();
  if (options.help) return console.log(help);
  const deps = connect();
  const host = createHost();
  const scene: Scene = {
    host,
    deps,
    place: await findPlace(host, deps?.config ?? null),
    options: { deep: options.deep, alarm: options.alarm },
    pins: await readPins(),
    tls: { address: "127.0.0.1", port: 443 },
    outside: { addresses: ownAddresses(), innerPorts: INNER_PORTS },
  };
  const progress = showProgress();
  const findings = await runChecks(scene, choose(options, deps !== null), {
    fix: options.fix,
    dryRun: options.dryRun,
    onBegin: progress.begin,
    onDone(finding) {
      progress.done(finding);
      if (!options.json && finding.status !== "skipped") console.log(renderLine(finding, options.dryRun));
    },
  });
  progress.end();
  const outcome = outcomeOf(findings);
  if (options.json) {
    const about = { schema: SCHEMA, outcome, host: hostname(), checked_at: new Date().toISOString() };
    console.log(JSON.stringify({ ...about, findings }, null, 2));
  } else console.log([...renderSkipped(findings), renderSummary(findings)].join("\n"));
  await deps?.close();
  process.exit({ ok: 0, bad: 1, unchecked: 2 }[outcome]);
}

await main();
