import type { RunEvent } from "../clients/gatewayFrames.ts";
import {
  claimTurns,
  listTurnsToDrop,
  releaseLeases,
  renewLeases,
  takeOverTurns,
  type ClaimedTurn,
} from "../db/turns.ts";
import type { Queryable } from "../db/connect.ts";
import type { Deps } from "../deps.ts";
import { secondsSince } from "../lib/ids.ts";
import { startLoop } from "../lib/loop.ts";
import { sleep } from "../lib/retry.ts";
import type { ChatHub } from "./chatHub.ts";
import { finishTurn } from "./conversations.ts";
import { TurnRun } from "./turnRun.ts";

/** A run's key begins with the turn's id (services/gatewayRun.ts). */
const UUID_LENGTH = 36;

type EngineDeps = Pick<Deps, "sql" | "gateway" | "workspaces" | "config" | "log" | "clock" | "processId" | "metrics">;

/** What accepting a message needs of the engine. */
export type Starter = Pick<ReturnType<typeof startTurnEngine>, "claim" | "start">;

/**
 * Runs the queued turns of the gateway: claims them under a lease, renews the lease while they run, takes over those
 * whose process fell silent, and drops those that were stopped or waited too long. All state is in Postgres.
 */
export function startTurnEngine(deps: EngineDeps, hub: ChatHub) {
  const { config, sql, log, clock } = deps;
  const runs = new Map<string, TurnRun>();
  const gatewayId = config.GATEWAY_ID;
  const lease = { owner: deps.processId, leaseMs: config.TURN_LEASE_MS };
  let draining = false;

  const start = (turn: ClaimedTurn) => {
    // Our own lease ran out while Postgres was away: the run lives on here.
    if (runs.has(turn.id)) return;
    log.info({ turn_id: turn.id, attempt: turn.attempts }, "turn started");
    const run = new TurnRun(deps, hub, turn, () => {
      if (runs.get(turn.id) === run) runs.delete(turn.id);
      claimLoop.wake();
    });
    runs.set(turn.id, run);
  };
  const dropQueued = async () => {
    for (const turn of await listTurnsToDrop(sql, { gatewayId, waitMs: config.TURN_WAIT_MS })) {
      const outcome = turn.stopRequested
        ? ({ status: "stopped", text: "", usage: null } as const)
        : ({ status: "failed", text: "", code: "assistant_unavailable" } as const);
      const message = await finishTurn(deps, turn, null, outcome).catch((err: unknown) => {
        log.warn({ err, turn_id: turn.id }, "turn could not be dropped; trying again");
        return null;
      });
      if (!message) continue;
      deps.metrics.turn.observe({ status: outcome.status }, secondsSince(turn.id));
      hub.messageStored(turn.assistantId, message.seq, message);
    }
  };
  const takeOver = async () => {
    if (draining || !deps.gateway.isReady()) return;
    for (const turn of await takeOverTurns(sql, { gatewayId, ...lease })) start(turn);
  };
  const limits = {
    maxRuns: config.GATEWAY_MAX_RUNS,
    workingSet: config.GATEWAY_WORKING_SET,
    waitMs: config.TURN_WAIT_MS,
  };
  const claimQueued = async (queryable: Queryable, mayWait: boolean): Promise<ClaimedTurn[]> =>
    draining || !deps.gateway.isReady() ? [] : claimTurns(queryable, { gatewayId, ...lease, ...limits, mayWait });
  const startQueued = async () => {
    for (const turn of await claimQueued(sql, true)) start(turn);
  };
  const renew = async () => {
    const ids = [...runs.keys()];
    if (ids.length === 0) return;
    const held = new Map((await renewLeases(sql, { ids, ...lease })).map((row) => [row.id, row.stopRequested]));
    for (const id of ids) {
      const run = runs.get(id);
      // Not ours any more, and not just ending: another process has taken it over.
      if (!held.has(id)) run?.lost();
      else if (held.get(id)) run?.stop();
    }
  };

  const loop = (name: string, run: () => Promise<void>, resyncMs: number) =>
    startLoop({ name, run, debounceMs: 2, maxWaitMs: 10, resyncMs, backoffMs: 200, log, clock });
  const claimLoop = loop("turns", startQueued, 1000);
  const dropLoop = loop("stopped turns", dropQueued, 1000);
  // Apart from claiming, whose lock a process that stands still may hold for some seconds.
  const takeoverLoop = loop("takeover", takeOver, config.TURN_LEASE_MS / 4);
  const leaseLoop = loop("leases", renew, config.TURN_LEASE_MS / 4);
  deps.gateway.listen({
    onRun: (event: RunEvent) => runs.get(event.runId.slice(0, UUID_LENGTH))?.handle(event),
    onReady: () => {
      for (const run of runs.values()) run.reconnected();
      claimLoop.wake();
      takeoverLoop.wake();
    },
  });

  return {
    /** The queue may have changed. */
    wake: () => claimLoop.wake(),
    /** Somebody may have asked to stop something. */
    wakeStops: () => {
      leaseLoop.wake();
      dropLoop.wake();
    },
    /** Claims what may run, in the transaction that accepts a message; to be started when that has committed. */
    claim: (tx: Queryable) => claimQueued(tx, false),
    /** Starts turns that were claimed. If nobody does (we died), their leases run out. */
    start: (turns: ClaimedTurn[]) => turns.forEach(start),
    running: () => runs.size,
    /** Lets running answers end for `graceMs`; what is left then is another process's, at once. */
    async stop(graceMs: number): Promise<void> {
      draining = true;
      await Promise.all([claimLoop.stop(), dropLoop.stop(), takeoverLoop.stop()]);
      const until = clock.now() + graceMs;
      while (runs.size > 0 && clock.now() < until) await sleep(50, undefined, clock);
      await leaseLoop.stop();
      for (const run of runs.values()) run.leave();
      await releaseLeases(sql, { owner: deps.processId }).catch(() => undefined);
    },
  };
}
