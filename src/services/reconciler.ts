import { recordGateway } from "../db/gateways.ts";
import { withAdvisoryLock } from "../db/locks.ts";
import { decideWorkingSet, markAwake, markFailed, type Placed } from "../db/workingSet.ts";
import type { Deps } from "../deps.ts";
import { startLoop, type Loop } from "../lib/loop.ts";
import { timed } from "../lib/metrics.ts";
import { sleep } from "../lib/retry.ts";
import { PLACEHOLDER_AGENT, renderGatewayConfig, type ConfiguredAgent } from "./gatewayConfig.ts";
import { deleteAgents, eraseAgents, listAgentsToDelete } from "./purge.ts";

type ReconcilerDeps = Pick<Deps, "sql" | "gateway" | "workspaces" | "config" | "log" | "redis" | "metrics">;

export const RESYNC_MS = 60_000;
const POLL_MS = 150;
/** A gateway that has not seen a change by then is shown the file again: a file watcher may miss one. */
const SHOW_AGAIN_MS = 4_000;

/**
 * Makes the gateway match the rows, by level: reads all, renders the whole configuration, compares, writes, waits until
 * it is applied, records it. One run at a time in all processes. Runs only while the gateway is connected: while it is
 * down its files belong to the step that runs before its start (jobs/parkAgents.ts).
 */
export function startReconciler(deps: ReconcilerDeps): Loop {
  let lastWritten: string | null = null;
  const loop = startLoop({
    name: "reconciler",
    debounceMs: deps.config.GATEWAY_RELOAD_DEBOUNCE_MS,
    maxWaitMs: deps.config.GATEWAY_RELOAD_DEBOUNCE_MS * 4,
    resyncMs: RESYNC_MS,
    backoffMs: 500,
    log: deps.log,
    run: async (signal) => {
      if (!deps.gateway.isReady()) return;
      const ran = await withAdvisoryLock(deps.sql, `reconciler:${deps.config.GATEWAY_ID}`, async () => {
        lastWritten = await timed(deps.metrics.reconcile, () => reconcileOnce(deps, lastWritten, signal));
        return true;
      });
      // Another process works at it; look again soon, in case it began before what we were woken for.
      if (ran === null) setTimeout(() => loop.wake(), 500);
    },
  });
  deps.gateway.listen({ onReady: () => loop.wake() });
  return loop;
}

/** One pass. Returns the configuration as it now stands on disk, to tell drift from our own changes the next time. */
export async function reconcileOnce(
  deps: ReconcilerDeps,
  lastWritten: string | null,
  signal: AbortSignal,
): Promise<string> {
  const { config } = deps;
  const placed = await deps.sql.begin((sql) =>
    decideWorkingSet(sql, {
      gatewayId: config.GATEWAY_ID,
      workingSet: config.GATEWAY_WORKING_SET,
      idleMs: config.GATEWAY_IDLE_SLEEP_MS,
    }),
  );
  const prepared = await prepareAll(deps, placed);
  const doomed = await listAgentsToDelete(deps);
  let text = await apply(deps, [...prepared, ...doomed], lastWritten, signal);
  await markAwake(deps.sql, prepared);
  if (await deleteAgents(deps, new Set(doomed.map((agent) => agent.agentId)))) {
    // `agents.delete` has rewritten the file; ours, without the ids, goes back over it.
    text = await apply(deps, prepared, null, signal);
  }
  await eraseAgents(deps, new Set(prepared.map((agent) => agent.agentId)));
  await deps.workspaces.clearLeftovers();
  return text;
}

async function prepareAll(deps: ReconcilerDeps, placed: Placed[]): Promise<Placed[]> {
  const prepared: Placed[] = [];
  for (const assistant of placed) {
    try {
      await deps.workspaces.prepare(assistant);
      await deps.workspaces.guard(assistant);
      prepared.push(assistant);
    } catch (err) {
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

/** Writes the configuration if it differs and waits until the gateway lives by it. Throws when it does not in time. */
async function apply(
  deps: ReconcilerDeps,
  agents: { agentId: string; model: string }[],
  lastWritten: string | null,
  signal: AbortSignal,
): Promise<string> {
  const wanted = renderFor(deps, agents);
  const found = await deps.workspaces.readConfig();
  const drift = lastWritten !== null && found !== lastWritten;
  if (found !== wanted) await deps.workspaces.writeConfig(wanted);
  if (drift) deps.log.warn("the gateway's configuration was changed by somebody else; put back");
  const hash = await waitUntilApplied(
    deps,
    new Set([PLACEHOLDER_AGENT, ...agents.map((agent) => agent.agentId)]),
    wanted,
    signal,
  );
  const hello = deps.gateway.hello();
  await recordGateway(deps.sql, {
    id: deps.config.GATEWAY_ID,
    version: hello?.version ?? "",
    bootId: hello?.bootId ?? "",
    appliedHash: hash,
    driftRepairs: drift ? 1 : 0,
  });
  return wanted;
}

/** The whole configuration for these agents. */
export function renderFor(
  deps: Pick<Deps, "config" | "workspaces">,
  agents: { agentId: string; model: string }[],
): string {
  const entries: ConfiguredAgent[] = agents.map(({ agentId, model }) => ({
    agentId,
    model,
    workspace: deps.workspaces.workspaceOf(agentId),
  }));
  return renderGatewayConfig(entries, {
    providerUrl: deps.config.OPENAI_BASE_URL,
    maxRuns: deps.config.GATEWAY_MAX_RUNS,
    turnTotalMs: deps.config.TURN_TOTAL_MS,
    placeholderWorkspace: deps.workspaces.workspaceOf(PLACEHOLDER_AGENT),
  });
}

async function waitUntilApplied(
  deps: ReconcilerDeps,
  ids: Set<string>,
  text: string,
  signal: AbortSignal,
): Promise<string> {
  const until = Date.now() + deps.config.GATEWAY_APPLY_TIMEOUT_MS;
  let showAgainAt = Date.now() + SHOW_AGAIN_MS;
  while (Date.now() < until && !signal.aborted) {
    if (Date.now() > showAgainAt) {
      showAgainAt = Date.now() + SHOW_AGAIN_MS;
      await deps.workspaces.writeConfig(text);
    }
    const listed = await deps.gateway.listAgents();
    if (listed.length === ids.size && listed.every((id) => ids.has(id))) {
      const status = await deps.gateway.readConfigStatus();
      if (status.valid && status.applied) return status.hash;
    }
    await sleep(POLL_MS, signal);
  }
  const status = await deps.gateway.readConfigStatus();
  deps.log.error(
    { valid: status.valid, applied: status.applied, issues: status.issues.slice(0, 5) },
    "the gateway has not taken its configuration",
  );
  throw new Error("the gateway has not taken its configuration in time");
}
