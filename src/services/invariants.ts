import { isCanaryAwake } from "../db/canary.ts";
import * as rows from "../db/invariants.ts";
import type { Queryable } from "../db/connect.ts";
import type { Config } from "../config.ts";
import type { Deps } from "../deps.ts";
import { sleep, withDeadline } from "../lib/retry.ts";
import { CANARY_AGENTS, PLACEHOLDER_AGENT, renderGatewayConfig } from "./gatewayConfig.ts";
import { RESYNC_MS } from "./reconciler.ts";

type InvariantDeps = Pick<Deps, "sql" | "gateway" | "workspaces" | "config">;

/** Beyond its budgets a turn may take a sweep, a lease and the gateway's abort. */
const STUCK_GRACE_MS = 30_000;
const INBOX_SECONDS = 300;
const GATEWAY_WAIT_MS = 5_000;
/** Expired reservations are looked for every few seconds (services/usage.ts). */
const SWEPT_WITHIN_MS = 60_000;
const LOOK_AGAIN_MS = 250;
/** What is out of line by design is put right within a resync; then it counts. */
export const SETTLE_MS = RESYNC_MS + 15_000;

/** What must always hold. `settles`: may be out of line for a moment by design, so it is looked at again. */
export interface Invariant {
  id: string;
  /** Which of the numbered rules it is a part of. */
  rule: number;
  sentence: string;
  settles: boolean;
  /** Looks at the one gateway that the process has; the others look at theirs. */
  ofGateway: boolean;
  check(deps: InvariantDeps, timeoutMs: number): Promise<rows.Tally>;
}

export interface Finding extends rows.Tally {
  id: string;
  rule: number;
  sentence: string;
  status: "ok" | "violated" | "unchecked";
  /** Why it could not be checked. */
  reason?: string;
}

const inRows = (check: (sql: Queryable, config: Deps["config"]) => Promise<rows.Tally>): Invariant["check"] => {
  return (deps, timeoutMs) => rows.readSnapshot(deps.sql, timeoutMs, (sql) => check(sql, deps.config));
};

const rule = (number: number, id: string, sentence: string, check: Invariant["check"]): Invariant => {
  return { id, rule: number, sentence, settles: false, ofGateway: false, check };
};
const ofGateway = (invariant: Invariant): Invariant => ({ ...invariant, ofGateway: true });
const settling = (invariant: Invariant): Invariant => ({ ...invariant, settles: true });

export const INVARIANTS: readonly Invariant[] = [
  rule(1, "message_turn", "an accepted message has one turn, and a turn one message", inRows(rows.checkTurnOfMessage)),
  rule(1, "turn_answer", "a turn has one answer when it has ended, else none", inRows(rows.checkAnswerOfTurn)),
  rule(1, "turn_finished_at", "a turn has a finish time exactly when it has ended", inRows(rows.checkFinishTimes)),
  rule(1, "one_running", "an assistant answers one message at a time", inRows(rows.checkOneRunning)),
  settling(rule(1, "stuck_turn", "an unfinished turn is within its budgets", inRows(checkStuck))),
  rule(2, "seq_gapless", "the numbers of a conversation have no gap", inRows(rows.checkSeqs)),
  rule(3, "usage_sum", "a day's usage is the sum of its ledger rows", inRows(rows.checkUsageSums)),
  rule(3, "usage_limit", "a day's usage is within the limit then in force", inRows(rows.checkUsageLimits)),
  rule(3, "ledger_settled", "a use is settled by its answer, or given back in time", inRows(checkLedger)),
  ofGateway(settling(rule(4, "config_valid", "the gateway's configuration is valid JSON", checkConfigValid))),
  ofGateway(
    settling(rule(4, "config_current", "the gateway's configuration is what the rows say", checkConfigCurrent)),
  ),
  ofGateway(settling(rule(5, "configured_awake", "who is configured is awake, active and wanted", checkConfigured))),
  rule(6, "purge_begun", "a deleted assistant is being purged, a living one is not", inRows(rows.checkPurgeSteps)),
  rule(6, "purged_rows", "a purged assistant has left no row", inRows(rows.checkPurgedRows)),
  ofGateway(settling(rule(6, "purged_files", "a purged assistant has left no folder", checkPurgedFiles))),
  rule(6, "deletion_begun", "an account that leaves is being deleted, no other is", inRows(rows.checkDeletionSteps)),
  rule(6, "deleted_rows", "a deleted account has left no row", inRows(rows.checkDeletedRows)),
  rule(7, "message_owner", "a message is its assistant's owner's", inRows(rows.checkMessageOwners)),
  rule(7, "turn_owner", "a turn is its assistant's owner's", inRows(rows.checkTurnOwners)),
  rule(7, "ledger_owner", "a ledger row is its assistant's owner's", inRows(rows.checkLedgerOwners)),
  rule(8, "billing_inbox", "an event of Stripe's waits no longer than five minutes", inRows(checkInbox)),
  settling(rule(8, "billing_applied", "the plan applied is the plan in force", inRows(rows.checkAppliedPlans))),
  settling(
    rule(8, "billing_fitted", "nobody has more assistants active than planned", inRows(rows.checkAssistantNumbers)),
  ),
  rule(8, "billing_prices", "a plan has one current price by the month and year", inRows(rows.checkCurrentPrices)),
];

function checkInbox(sql: Queryable): Promise<rows.Tally> {
  return rows.checkStripeInbox(sql, { seconds: INBOX_SECONDS });
}

function checkStuck(sql: Queryable, config: Deps["config"]): Promise<rows.Tally> {
  return rows.checkStuckTurns(sql, {
    waitMs: config.TURN_WAIT_MS,
    totalMs: config.TURN_TOTAL_MS,
    graceMs: STUCK_GRACE_MS,
  });
}

function checkLedger(sql: Queryable): Promise<rows.Tally> {
  return rows.checkLedger(sql, SWEPT_WITHIN_MS);
}

async function checkConfigValid(deps: InvariantDeps): Promise<rows.Tally> {
  return tallyOne("openclaw.json", readAgents(await deps.workspaces.readConfig()) !== null);
}

/** While the gateway is down its file belongs to the step before its start, so there is nothing to compare. */
async function checkConfigCurrent(deps: InvariantDeps): Promise<rows.Tally> {
  await requireGateway(deps);
  const id = deps.config.GATEWAY_ID;
  const canary = (await isCanaryAwake(deps.sql, id)) ? CANARY_AGENTS : [];
  const wanted = renderGatewayConfig(deps, [...(await rows.listConfigured(deps.sql, id)), ...canary]);
  return tallyOne("openclaw.json", (await deps.workspaces.readConfig()) === wanted);
}

/** Both the file and the gateway itself say who is configured. */
async function checkConfigured(deps: InvariantDeps, timeoutMs: number): Promise<rows.Tally> {
  await requireGateway(deps);
  const listed = await deps.gateway.listAgents();
  const found = new Set([...listed, ...(readAgents(await deps.workspaces.readConfig()) ?? [])]);
  const canary = (await isCanaryAwake(deps.sql, deps.config.GATEWAY_ID)) ? CANARY_AGENTS : [];
  for (const id of [PLACEHOLDER_AGENT, ...canary.map(({ agentId }) => agentId)]) found.delete(id);
  return rows.readSnapshot(deps.sql, timeoutMs, (sql) =>
    rows.checkConfigured(sql, { gatewayId: deps.config.GATEWAY_ID, agentIds: [...found] }),
  );
}

async function checkPurgedFiles(deps: InvariantDeps, timeoutMs: number): Promise<rows.Tally> {
  const agentIds = await deps.workspaces.listAgents();
  return rows.readSnapshot(deps.sql, timeoutMs, (sql) => rows.checkPurgedFiles(sql, agentIds));
}

function tallyOne(id: string, ok: boolean): rows.Tally {
  return ok ? { total: 1, violations: 0, samples: [] } : { total: 1, violations: 1, samples: [id] };
}

/** The agents that a configuration names; null when it is no valid JSON object or missing. */
function readAgents(text: string | null): string[] | null {
  try {
    const config = JSON.parse(text ?? "") as { agents?: { entries?: object } };
    return Object.keys(config.agents?.entries ?? {});
  } catch {
    return null;
  }
}

async function requireGateway(deps: InvariantDeps): Promise<void> {
  const until = Date.now() + GATEWAY_WAIT_MS;
  while (!deps.gateway.isReady()) {
    if (Date.now() > until) throw new Error("the gateway is not connected");
    await sleep(LOOK_AGAIN_MS);
  }
}

export interface CheckOptions {
  /** How long what settles is looked at again before it counts. */
  patienceMs: number;
  /** How long one check may take. */
  timeoutMs: number;
  signal?: AbortSignal;
  /** Names what is being looked at, for a progress line. */
  onBegin?: (invariant: Invariant) => void;
  /** Which; all that this process can check. */
  invariants?: readonly Invariant[];
}

/** What a process can check: without a gateway of its own (ROLE=front) the rows only. */
export function invariantsOf({ ROLE }: Pick<Config, "ROLE">): readonly Invariant[] {
  return INVARIANTS.filter((invariant) => ROLE !== "front" || !invariant.ofGateway);
}

/**
 * Checks every invariant, one after the other; then looks again at those that may settle, all of them for as long as
 * `patienceMs`. Never throws: what can't be checked says why.
 */
export async function checkInvariants(deps: InvariantDeps, options: CheckOptions): Promise<Finding[]> {
  const { signal, onBegin, timeoutMs, invariants: all = invariantsOf(deps.config) } = options;
  const findings = new Map<Invariant, Finding>();
  const look = async (invariants: readonly Invariant[]) => {
    for (const invariant of invariants) {
      if (signal?.aborted) return;
      onBegin?.(invariant);
      findings.set(invariant, await checkOnce(deps, invariant, timeoutMs));
    }
  };
  const unsettled = () => all.filter((one) => one.settles && findings.get(one)?.status === "violated");
  await look(all);
  const until = Date.now() + options.patienceMs;
  while (unsettled().length > 0 && Date.now() < until && !signal?.aborted) {
    await sleep(LOOK_AGAIN_MS, signal);
    await look(unsettled());
  }
  return [...findings.values()];
}

async function checkOnce(deps: InvariantDeps, invariant: Invariant, timeoutMs: number): Promise<Finding> {
  const { id, rule: number, sentence } = invariant;
  const about = { id, rule: number, sentence };
  try {
    const tally = await withDeadline(invariant.check(deps, timeoutMs), timeoutMs + GATEWAY_WAIT_MS, "the check");
    return { ...about, ...tally, status: tally.violations === 0 ? "ok" : "violated" };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    return { ...about, total: 0, violations: 0, samples: [], status: "unchecked", reason };
  }
}
