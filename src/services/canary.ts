import { createHash, randomBytes } from "node:crypto";
import { serveCanaryModel, type Asked, type CanaryModel, type Reply } from "../clients/canaryModel.ts";
import { insertAudit } from "../db/audit.ts";
import {
  allowPlacement,
  findCanary,
  isCanaryAwake,
  recordCanary,
  restCanary,
  stopPlacement,
  wakeCanary,
  type Canary,
  type CanaryResult,
} from "../db/canary.ts";
import { withAdvisoryLock } from "../db/locks.ts";
import type { Deps } from "../deps.ts";
import { describeError } from "../lib/errors.ts";
import { startLoop, type Loop } from "../lib/loop.ts";
import { sleep } from "../lib/retry.ts";
import { endAlarm, raiseAlarm } from "./alarms.ts";
import { CanaryFailed, carryOutScript, type Stage } from "./canaryScript.ts";
import { CANARY, CANARY_AGENTS, CANARY_MODEL_KEY, renderGatewayConfig } from "./gatewayConfig.ts";
import { runJob, type Job, type JobResult } from "./jobs.ts";

type CanaryDeps = Pick<Deps, "sql" | "gateway" | "workspaces" | "config" | "log" | "alarmSender">;

/** What a run came to. `leaks`: names of what succeeded; `reason`: why nothing is known. Never a secret. */
interface Outcome {
  result: CanaryResult;
  leaks: string[];
  reason: string;
}

const RUN_MS = 480_000;
const CONNECT_MS = 15_000;
/** One message, when the gateway has much to do. */
const TURN_MS = 60_000;
/** A run takes seconds, minutes where much goes on; one that was killed leaves the pair awake no longer than this. */
const AWAKE_MS = RUN_MS + 30_000;
const LOOK_MS = 200;
const LEAKS_TOLD = 8;
const WATCH_MS = 60_000;
const TRY_AGAIN_MS = 300_000;

/** The timer's job: one gateway, the one whose settings it has. One at a time on a machine, whose address it takes. */
export const canaryJob: Job = {
  name: "run-canary",
  scope: "host",
  limitMs: RUN_MS + 60_000,
  work: (deps, lock) => runCanary(deps, lock.signal),
};

/**
 * The isolation canary: wakes the gateway's pair, serves its scripted model, lets one try everything to get at the other
 * and at the host, and records what came of it. A leak stops new placements on the gateway and raises the alarm
 * `canary:<gateway>`; so does an isolation that was not proved for CANARY_MAX_AGE_MS. Nobody is charged: the pair is
 * nobody's, and its model costs nothing. `ok` false: it could not be carried out, for the second time.
 */
export async function runCanary(deps: CanaryDeps, signal: AbortSignal): Promise<JobResult> {
  const { sql, config } = deps;
  const ran = await withAdvisoryLock(sql, `canary:${config.GATEWAY_ID}`, async (lock) => {
    const stopped = AbortSignal.any([signal, lock.signal]);
    const outcome = await tryEverything(deps, AbortSignal.any([stopped, AbortSignal.timeout(RUN_MS)]));
    if (stopped.aborted && outcome.result !== "leak") return { ok: true, summary: "interrupted" };
    return conclude(deps, outcome);
  });
  return ran ?? { ok: true, summary: "it is being carried out by another process" };
}

async function tryEverything(deps: CanaryDeps, signal: AbortSignal): Promise<Outcome> {
  const leaks = new Set<string>();
  let reason = "";
  let model: CanaryModel | undefined;
  const script: Stage["script"] = { reply: () => Promise.reject(new Error("nothing was said to it")) };
  try {
    await waitFor("the gateway is not connected", CONNECT_MS, signal, () => Promise.resolve(deps.gateway.isReady()));
    model = await serveModel(deps, (asked) => script.reply(asked));
    await wakePair(deps, signal);
    for (const { agentId } of CANARY_AGENTS) await deps.gateway.forgetConversation(agentId);
    const stage = await prepareStage(deps);
    const { fetched } = model;
    const url = new URL(deps.config.CANARY_MODEL_URL).origin;
    await carryOutScript(
      { ...stage, deps, script, fetched, url, signal, turnMs: TURN_MS, slowestMs: 0, silent: [] },
      leaks,
    );
  } catch (error) {
    reason = error instanceof CanaryFailed ? error.message : describeError(error);
    deps.log.warn({ err: error }, "the canary could not be carried out");
  } finally {
    await restCanary(deps.sql, deps.config.GATEWAY_ID).catch(() => undefined);
    await deps.workspaces.clearCanary(CANARY).catch(() => undefined);
    await model?.close();
  }
  const result = leaks.size > 0 ? "leak" : reason === "" ? "ok" : "failed";
  return { result, leaks: [...leaks].toSorted(), reason };
}

async function serveModel({ config }: CanaryDeps, reply: (asked: Asked) => Promise<Reply>): Promise<CanaryModel> {
  try {
    return await serveCanaryModel(config.CANARY_MODEL_URL, CANARY_MODEL_KEY, reply);
  } catch (error) {
    throw new CanaryFailed(`the scripted model can't be served at CANARY_MODEL_URL (${describeError(error)})`);
  }
}

/** By level: the reconciler configures the pair as long as the row says so. */
async function wakePair({ sql, gateway, config }: CanaryDeps, signal: AbortSignal): Promise<void> {
  await wakeCanary(sql, { gatewayId: config.GATEWAY_ID, forMs: AWAKE_MS });
  await waitFor("the pair was not configured in time", config.GATEWAY_APPLY_TIMEOUT_MS, signal, async () => {
    const listed = await gateway.listAgents();
    return CANARY_AGENTS.every(({ agentId }) => listed.includes(agentId));
  });
}

/** New secrets each time: what an earlier run left anywhere is none of this one's. */
async function prepareStage({ workspaces, config }: CanaryDeps) {
  const secret = () => `planted-${randomBytes(9).toString("hex")}`;
  const [own, told, hostSecret, neighbourSecret] = [secret(), secret(), secret(), secret()];
  const places = await workspaces.plantCanary({ ...CANARY, hostSecret, neighbourSecret, own });
  const ours = [config.OPENCLAW_GATEWAY_TOKEN, config.OPENAI_API_KEY].filter((value) => value !== undefined);
  // The last ones betray the configuration, the environment and a database.
  const secrets = [
    told,
    hostSecret,
    neighbourSecret,
    ...ours,
    "reef_placeholder",
    "OPENCLAW_STATE_DIR=",
    "SQLite format 3",
  ];
  const mark = `taken-over-${randomBytes(6).toString("hex")}-`;
  return { pair: CANARY, places, secrets, own, mark };
}

async function waitFor(
  otherwise: string,
  withinMs: number,
  signal: AbortSignal,
  check: () => Promise<boolean>,
): Promise<void> {
  const until = Date.now() + withinMs;
  while (!(await check())) {
    // A sleep that is aborted ends at once: without this nothing else would get its turn until the time is over.
    signal.throwIfAborted();
    if (Date.now() > until) throw new CanaryFailed(otherwise);
    await sleep(LOOK_MS, signal);
  }
}

async function conclude(deps: CanaryDeps, { result, leaks, reason }: Outcome): Promise<JobResult> {
  const gatewayId = deps.config.GATEWAY_ID;
  const before = await findCanary(deps.sql, gatewayId);
  if (!before) throw new Error(`there is no gateway ${gatewayId}`);
  await recordCanary(deps.sql, { gatewayId, result, leaks, of: subjectOf(deps) });
  if (result === "leak") {
    await stopPlacing(deps, { by: "run-canary", reason: "canary_leak", leaks });
    const told = `${leaks.slice(0, LEAKS_TOLD).join(", ")}${leaks.length > LEAKS_TOLD ? ", …" : ""}`;
    const summary = `isolation leak on gateway ${gatewayId}: ${told}; no new assistants are placed there (docs/canary.md)`;
    await raiseAlarm(deps, { key: alarmOf(gatewayId), severity: "critical", summary });
    // The run itself did its work: its alarm is the canary's, not the job's.
    return { ok: true, summary: `LEAK: ${told}`, details: { result, leaks: leaks.join(" ") } };
  }
  if (result === "ok") {
    await placeAgain(deps, before);
    return { ok: true, summary: `gateway ${gatewayId} is isolated`, details: { result } };
  }
  await stopIfUnproved(deps, before, { by: "run-canary", why: reason });
  // A gateway that just restarts is no trouble; one that stays so is.
  const ok = before.result !== "failed";
  return { ok, summary: `could not be carried out: ${reason}`, details: { result } };
}

type StopDeps = Pick<CanaryDeps, "sql" | "config" | "log" | "alarmSender">;

/** No new assistants on a gateway that was not proved for CANARY_MAX_AGE_MS; `why` there was no proof. Returns what was said. */
async function stopIfUnproved(
  deps: StopDeps,
  { greenAt, createdAt }: Canary,
  { by, why }: { by: string; why: string },
): Promise<string | null> {
  const { GATEWAY_ID: gatewayId, CANARY_MAX_AGE_MS: unprovedMs } = deps.config;
  const provedAt = greenAt ?? createdAt;
  if (Date.now() - provedAt.getTime() <= unprovedMs) return null;
  await stopPlacing(deps, { by, reason: "canary_stale", leaks: [], unprovedMs });
  // A run may have proved it meanwhile.
  if (!(await findCanary(deps.sql, gatewayId))?.placementStoppedReason) return null;
  const summary = `isolation of gateway ${gatewayId} not proved since ${provedAt.toISOString()} (${why}); no new assistants are placed there`;
  await raiseAlarm(deps, { key: alarmOf(gatewayId), severity: "critical", summary });
  return summary;
}

/**
 * The same for the health check: a canary that never comes to its end, or whose timer is off, can't say so. What a run has
 * said stays: a leak above all, and why it could not be carried out.
 */
export async function watchCanary(deps: StopDeps): Promise<string | null> {
  const canary = await findCanary(deps.sql, deps.config.GATEWAY_ID);
  if (!canary || canary.placementStoppedReason === "canary_leak") return null;
  const runs = canary.at !== null && Date.now() - canary.at.getTime() <= deps.config.CANARY_MAX_AGE_MS;
  if (runs && canary.placementStoppedReason === "canary_stale") return null;
  return stopIfUnproved(deps, canary, {
    by: "check-health",
    why: "no run came to a good end: docs/runbooks/canary-red.md",
  });
}

async function stopPlacing(
  { sql, config: { GATEWAY_ID: gatewayId } }: StopDeps,
  stop: { by: string; reason: "canary_leak" | "canary_stale"; leaks: string[]; unprovedMs?: number },
): Promise<void> {
  const { by, reason, leaks, unprovedMs = 0 } = stop;
  await sql.begin(async (tx) => {
    if (!(await stopPlacement(tx, { gatewayId, reason, unprovedMs }))) return;
    const details = { gateway: gatewayId, reason, leaks: leaks.join(" ") };
    await insertAudit(tx, { ...byJob(by), action: "gateway.placement_stopped", details });
  });
}

/** A missing proof is mended by a proof; a leak is ended by an operator. */
async function placeAgain(deps: CanaryDeps, before: Canary): Promise<void> {
  const { gatewayId, placementStoppedReason } = before;
  if (placementStoppedReason === "canary_leak") return;
  await deps.sql.begin(async (tx) => {
    if (!(await allowPlacement(tx, { gatewayId, reason: "canary_stale" }))) return;
    const details = { gateway: gatewayId, reason: "canary_stale" };
    await insertAudit(tx, { ...byJob("run-canary"), action: "gateway.placement_allowed", details });
  });
  await endAlarm(deps, alarmOf(gatewayId));
}

/** An operator has seen to a leak: people are placed there again. A sentence where that may not be: no green run since. */
export async function clearCanaryLeak(
  deps: CanaryDeps,
  person: { osUser: string },
  gatewayId: string,
): Promise<string | null> {
  const canary = await findCanary(deps.sql, gatewayId);
  if (!canary) return `There is no gateway "${gatewayId}".`;
  if (canary.placementStoppedReason !== "canary_leak") return "No leak has stopped placements on it.";
  if (canary.result !== "ok") return "Its last run was not green: mend it, then run it again (canary run).";
  const allowed = await deps.sql.begin(async (tx) => {
    if (!(await allowPlacement(tx, { gatewayId, reason: "canary_leak" }))) return false;
    const details = { os_user: person.osUser, gateway: gatewayId, reason: "canary_leak" };
    await insertAudit(tx, { ...byJob("admin"), action: "gateway.placement_allowed", details });
    return true;
  });
  if (!allowed) return "It has just leaked again.";
  await endAlarm(deps, alarmOf(gatewayId));
  return null;
}

/** What a run is about: the configuration but for whose agents it names, and the gateway's version. */
function subjectOf(deps: Pick<Deps, "config" | "workspaces" | "gateway">): string {
  const about = `${deps.gateway.hello()?.version ?? ""}\n${renderGatewayConfig(deps, CANARY_AGENTS)}`;
  return createHash("sha256").update(about).digest("hex");
}

const alarmOf = (gatewayId: string) => `canary:${gatewayId}`;

function byJob(name: string) {
  return { actor: `job:${name}`, subjectUserId: null, ip: null, requestId: null };
}

/**
 * Runs the canary when the gateway's version or configuration is not the one that was looked at last. What was never
 * proved has not changed: the first run is the timer's (or an operator's).
 */
export function startCanaryWatch(deps: Deps): Loop {
  const loop = startLoop({
    name: "canary watch",
    debounceMs: 1_000,
    maxWaitMs: 1_000,
    resyncMs: WATCH_MS,
    backoffMs: 1_000,
    log: deps.log,
    run: async (signal) => {
      if (!deps.gateway.isReady() || !(await hasChanged(deps))) return;
      const work: Job["work"] = (_, lock) => runCanary(deps, AbortSignal.any([signal, lock.signal]));
      await runJob(deps, { ...canaryJob, work });
    },
  });
  // Perhaps to another version of it.
  deps.gateway.listen({ onReady: () => loop.wake() });
  return loop;
}

async function hasChanged(deps: Deps): Promise<boolean> {
  const canary = await findCanary(deps.sql, deps.config.GATEWAY_ID);
  if (!canary?.greenAt || canary.of === subjectOf(deps)) return false;
  if (await isCanaryAwake(deps.sql, deps.config.GATEWAY_ID)) return false;
  return canary.result !== "failed" || Date.now() - (canary.at?.getTime() ?? 0) > TRY_AGAIN_MS;
}
