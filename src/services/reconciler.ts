import { createHash } from "node:crypto";
import { FilesAwayError } from "../clients/remoteWorkspaces.ts";
import { isCanaryAwake } from "../db/canary.ts";
import { findWrittenConfig, recordGateway, recordWrittenConfig } from "../db/gateways.ts";
import { withAdvisoryLock } from "../db/locks.ts";
import { decideWorkingSet, markAwake, markFailed, type Placed } from "../db/workingSet.ts";
import type { Deps } from "../deps.ts";
import { startLoop, type Loop } from "../lib/loop.ts";
import { timed } from "../lib/metrics.ts";
import { sleep } from "../lib/retry.ts";
import { CANARY_AGENTS, PLACEHOLDER_AGENT, renderGatewayConfig, type ConfiguredAgent } from "./gatewayConfig.ts";
import { deleteAgent, eraseAgents, listDoomedAgents } from "./purge.ts";

type ReconcilerDeps = Pick<Deps, "sql" | "gateway" | "workspaces" | "config" | "log" | "redis" | "metrics">;

export const RESYNC_MS = 60_000;
const POLL_MS = 150;
/** A gateway that has not seen a change by then is shown the file again: a file watcher may miss one. */
const SHOW_AGAIN_MS = 2_000;
/** A reload takes about one second; after this none of ours is under way. */
const QUIET_MS = 3_000;
/** Shorter than a lock outlasts the silence of who holds it (db/locks.ts). */
const TRUSTED_MS = 1_000;

/** One pass at work: it may go on only while it has the lock and the process is not stopping. */
interface Pass {
  signal: AbortSignal;
  requireHeld(): Promise<void>;
}

/**
 * Makes the gateway match the rows, by level: reads all, renders the whole configuration, compares, writes, waits until
 * it is applied, records it. One run at a time in all processes. Runs only while the gateway is connected: while it is
 * down its files belong to the step that runs before its start (jobs/parkAgents.ts).
 */
export function startReconciler(deps: ReconcilerDeps): Loop {
  const wakes = new Map<string, number>();
  const loop = startLoop({
    name: "reconciler",
    debounceMs: deps.config.GATEWAY_RELOAD_DEBOUNCE_MS,
    maxWaitMs: deps.config.GATEWAY_RELOAD_DEBOUNCE_MS * 4,
    resyncMs: RESYNC_MS,
    backoffMs: 500,
    log: deps.log,
    run: async (signal) => {
      if (!deps.gateway.isReady()) return;
      const ran = await withAdvisoryLock(deps.sql, `reconciler:${deps.config.GATEWAY_ID}`, async (lock) => {
        const pass = { ...lock, signal: AbortSignal.any([signal, lock.signal]) };
        await timed(deps.metrics.reconcile, () => reconcileOnce(deps, pass, wakes));
        return true;
      });
      // Another process works at it; look again soon, in case it began before what we were woken for.
      if (ran === null) setTimeout(() => loop.wake(), 500);
    },
  });
  deps.gateway.listen({ onReady: () => loop.wake() });
  return loop;
}

/** `wakes`: since when, in milliseconds, those that are waking are. */
async function reconcileOnce(deps: ReconcilerDeps, pass: Pass, wakes: Map<string, number>): Promise<void> {
  const { config } = deps;
  const placed = await deps.sql.begin((sql) =>
    decideWorkingSet(sql, {
      gatewayId: config.GATEWAY_ID,
      workingSet: config.GATEWAY_WORKING_SET,
      idleMs: config.GATEWAY_IDLE_SLEEP_MS,
    }),
  );
  noteWaking(wakes, placed);
  const prepared = await prepareAll(deps, placed, pass);
  const doomed = await listDoomedAgents(deps, config.GATEWAY_WORKING_SET - prepared.length);
  // Beside the working set: they take nobody's place.
  const stay = [...prepared, ...(await prepareCanary(deps))];
  await apply(deps, [...stay, ...doomed], pass);
  await markAwake(deps.sql, prepared);
  for (const { id } of prepared) {
    const since = wakes.get(id);
    if (since !== undefined) deps.metrics.wake.observe((Date.now() - since) / 1000);
    wakes.delete(id);
  }
  while (doomed.length > 0) {
    await pass.requireHeld();
    // One at a time, each reload waited for: while it deletes an agent, a reload that still names it makes the gateway
    // restart itself, and that fails (2026.9.3).
    await deleteAgent(deps, doomed.shift()!);
    // `agents.delete` has rewritten the file, which is no drift; ours, without the id, goes back over it.
    await recordWrittenConfig(deps.sql, config.GATEWAY_ID, hashOf((await deps.workspaces.readConfig()) ?? ""));
    await apply(deps, [...stay, ...doomed], pass);
  }
  await eraseAgents(deps);
  await deps.workspaces
    .clearLeftovers()
    .catch((err: unknown) => deps.log.error({ err }, "the gateway's leftovers could not be erased; trying again"));
}

/** Another process may have woken some of them meanwhile, or somebody has let them sleep. */
function noteWaking(wakes: Map<string, number>, placed: Placed[]): void {
  const waking = new Set(placed.filter(({ state }) => state === "waking").map(({ id }) => id));
  for (const id of wakes.keys()) if (!waking.has(id)) wakes.delete(id);
  for (const id of waking) if (!wakes.has(id)) wakes.set(id, Date.now());
}

async function prepareAll(deps: ReconcilerDeps, placed: Placed[], pass: Pass): Promise<Placed[]> {
  const prepared: Placed[] = [];
  let heldAt = -Infinity;
  for (const assistant of placed) {
    // Whoever stood still meanwhile may have lost the lock, and would make folders of people who were erased since.
    const askedAt = performance.now();
    if (askedAt - heldAt > TRUSTED_MS) {
      await pass.requireHeld();
      heldAt = askedAt;
    }
    try {
      await deps.workspaces.prepare(assistant);
      // Those that are awake are guarded before and after each turn.
      if (assistant.state === "waking") await deps.workspaces.guard(assistant);
      prepared.push(assistant);
    } catch (err) {
      // That nobody serves the folder says nothing of this assistant: all of it again, soon.
      if (err instanceof FilesAwayError) throw err;
      const full = (err as NodeJS.ErrnoException).code === "ENOSPC";
      deps.log.error(
        { err, assistant_id: assistant.id },
        full ? "the disk is full; free some space" : "workspace could not be prepared",
      );
      await markFailed(deps.sql, assistant.id, full ? "storage_full" : "storage_error");
    }
  }
  return prepared;
}

async function prepareCanary({ sql, workspaces, config, log }: ReconcilerDeps): Promise<ConfiguredAgent[]> {
  if (!(await isCanaryAwake(sql, config.GATEWAY_ID))) return [];
  try {
    for (const { agentId } of CANARY_AGENTS) await workspaces.prepare({ agentId, displayName: null });
    return CANARY_AGENTS;
  } catch (err) {
    // The run will fail and say so; nobody else is to wait for it.
    log.error({ err }, "the canary's workspaces could not be prepared");
    return [];
  }
}

/** Writes the configuration if it differs and waits until the gateway lives by it. Throws when it does not in time. */
async function apply(deps: ReconcilerDeps, agents: { agentId: string; model: string }[], pass: Pass): Promise<void> {
  const { config, gateway, workspaces } = deps;
  const text = renderGatewayConfig(deps, agents);
  const found = await workspaces.readConfig();
  const differs = found !== text;
  const before = differs ? (await gateway.readConfigStatus()).hash : null;
  const repaired = differs && (await write(deps, found, text, pass));
  const ids = new Set([PLACEHOLDER_AGENT, ...agents.map((agent) => agent.agentId)]);
  const hash = await waitUntilApplied(deps, { ids, text, before }, pass);
  const hello = gateway.hello();
  await recordGateway(deps.sql, {
    id: config.GATEWAY_ID,
    version: hello?.version ?? "",
    bootId: hello?.bootId ?? "",
    appliedHash: hash,
    driftRepairs: repaired ? 1 : 0,
  });
}

/** True when what stood there was neither ours nor written by `agents.delete` or before the gateway's start. */
async function write(deps: ReconcilerDeps, found: string | null, text: string, pass: Pass): Promise<boolean> {
  const id = deps.config.GATEWAY_ID;
  const last = await findWrittenConfig(deps.sql, id);
  await pass.requireHeld();
  await recordWrittenConfig(deps.sql, id, hashOf(text));
  await deps.workspaces.writeConfig(text);
  const sameProcess = last.bootId === deps.gateway.hello()?.bootId;
  const drift = sameProcess && last.writtenHash !== null && last.writtenHash !== hashOf(found ?? "");
  if (drift) deps.log.warn("the gateway's configuration was changed by somebody else; put back");
  return drift;
}

function hashOf(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}

/**
 * Waits until the gateway lives by the file. `before` is the hash it had applied before the file was written: while a
 * reload is under way it can name the agents already and still answer with the old, matching hashes. A change that makes
 * no difference to it leaves the hash as it is, so what is quiet for a while counts, too.
 */
async function waitUntilApplied(
  deps: ReconcilerDeps,
  wanted: { ids: Set<string>; text: string; before: string | null },
  pass: Pass,
): Promise<string> {
  const startedAt = Date.now();
  let showAgainAt = startedAt + SHOW_AGAIN_MS;
  while (Date.now() - startedAt < deps.config.GATEWAY_APPLY_TIMEOUT_MS) {
    pass.signal.throwIfAborted();
    const listed = await deps.gateway.listAgents();
    if (listed.length === wanted.ids.size && listed.every((id) => wanted.ids.has(id))) {
      const { valid, applied, hash } = await deps.gateway.readConfigStatus();
      const moved = hash !== wanted.before || Date.now() - startedAt > QUIET_MS;
      if (valid && applied && moved) return hash;
    } else if (Date.now() > showAgainAt) {
      showAgainAt = Date.now() + SHOW_AGAIN_MS;
      await pass.requireHeld();
      await deps.workspaces.writeConfig(wanted.text);
    }
    await sleep(POLL_MS, pass.signal);
  }
  pass.signal.throwIfAborted();
  const status = await deps.gateway.readConfigStatus();
  deps.log.error(
    { valid: status.valid, applied: status.applied, issues: status.issues.slice(0, 5) },
    "the gateway has not taken its configuration",
  );
  throw new Error("the gateway has not taken its configuration in time");
}
