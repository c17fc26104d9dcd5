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
import { startLoop, type Loop } from "../lib/loop.ts";
import { sleep } from "../lib/retry.ts";
import type { ChatHub } from "./chatHub.ts";
import { finishTurn } from "./conversations.ts";
import { tellTurnEnd } from "./turnEnd.ts";
import { TurnRun } from "./turnRun.ts";

/** A run's key begins with the turn's id (services/gatewayRun.ts). */
const UUID_LENGTH = 36;

type EngineDeps = Pick<
  Deps,
  "sql" | "redis" | "gateway" | "workspaces" | "config" | "log" | "clock" | "processId" | "metrics" | "traces"
>;

/** What accepting a message needs of the engine. */
export type Starter = Pick<TurnEngine, "claim" | "start">;

/**
 * Runs the queued turns of the gateway: claims them under a lease, renews the lease while they run, takes over those
 * whose process fell silent, and drops those that were stopped or waited too long. All state is in Postgres.
 */
export class TurnEngine {
  private readonly runs = new Map<string, TurnRun>();
  private readonly ready = new WeakMap<ClaimedTurn, Promise<unknown>>();
  private readonly lease: { owner: string; leaseMs: number };
  private readonly gatewayId: string;
  private readonly claims: Loop;
  private readonly drops: Loop;
  private readonly takeovers: Loop;
  private readonly leases: Loop;
  private draining = false;

  constructor(
    private readonly deps: EngineDeps,
    private readonly hub: ChatHub,
  ) {
    const { config } = deps;
    this.gatewayId = config.GATEWAY_ID;
    this.lease = { owner: deps.processId, leaseMs: config.TURN_LEASE_MS };
    this.claims = this.loop("turns", () => this.claimQueued(), 1000);
    this.drops = this.loop("stopped turns", () => this.dropQueued(), 1000);
    // Apart from claiming, whose lock a process that stands still may hold for some seconds.
    this.takeovers = this.loop("takeover", () => this.takeOver(), config.TURN_LEASE_MS / 4);
    this.leases = this.loop("leases", () => this.renew(), config.TURN_LEASE_MS / 4);
    deps.gateway.listen({
      onRun: (event: RunEvent) => this.runs.get(event.runId.slice(0, UUID_LENGTH))?.handle(event),
      onReady: () => {
        for (const run of this.runs.values()) run.reconnected();
        this.claims.wake();
        this.takeovers.wake();
      },
    });
  }

  /** The queue may have changed. */
  wake(): void {
    this.claims.wake();
  }

  /** Somebody may have asked to stop something. */
  wakeStops(): void {
    this.leases.wake();
    this.drops.wake();
  }

  running(): number {
    return this.runs.size;
  }

  /** Claims what may run, in the transaction that accepts a message; to be started when that has committed. */
  readonly claim = async (tx: Queryable): Promise<ClaimedTurn[]> => {
    const turns = await this.claimBy(tx, false);
    // While that commits: somebody waits for the first word. A failure is met, and mended, when the turn starts.
    for (const turn of turns) {
      const ready = this.deps.workspaces.guard(turn);
      ready.catch(() => 0);
      this.ready.set(turn, ready);
    }
    return turns;
  };

  /** Starts turns that were claimed. If nobody does (we died), their leases run out. */
  start(turns: ClaimedTurn[]): void {
    for (const turn of turns) this.startOne(turn);
  }

  /** Lets running answers end for `graceMs`; what is left then is another process's, at once. */
  async stop(graceMs: number): Promise<void> {
    const { clock, sql } = this.deps;
    this.draining = true;
    await Promise.all([this.claims.stop(), this.drops.stop(), this.takeovers.stop()]);
    const until = clock.now() + graceMs;
    while (this.runs.size > 0 && clock.now() < until) await sleep(50, undefined, clock);
    await this.leases.stop();
    for (const run of this.runs.values()) run.leave();
    await releaseLeases(sql, { owner: this.deps.processId }).catch(() => undefined);
  }

  private loop(name: string, run: () => Promise<void>, resyncMs: number): Loop {
    const { log, clock } = this.deps;
    return startLoop({ name, run, debounceMs: 2, maxWaitMs: 10, resyncMs, backoffMs: 200, log, clock });
  }

  private startOne(turn: ClaimedTurn): void {
    // Our own lease ran out while Postgres was away: the run lives on here.
    if (this.runs.has(turn.id)) return;
    const { id: turn_id, assistantId: assistant_id, userId: user_id, attempts: attempt } = turn;
    this.deps.log.info({ turn_id, assistant_id, user_id, attempt }, "turn started");
    const run = new TurnRun(this.deps, this.hub, turn, this.ready.get(turn), () => {
      if (this.runs.get(turn.id) === run) this.runs.delete(turn.id);
      this.claims.wake();
    });
    this.runs.set(turn.id, run);
  }

  /** Whether turns may be taken: who ends, or has lost the gateway, leaves them to others. */
  private isServing(): boolean {
    return !this.draining && this.deps.gateway.isReady();
  }

  private async claimBy(sql: Queryable, mayWait: boolean): Promise<ClaimedTurn[]> {
    if (!this.isServing()) return [];
    const { GATEWAY_MAX_RUNS, GATEWAY_WORKING_SET, TURN_WAIT_MS } = this.deps.config;
    const limits = { maxRuns: GATEWAY_MAX_RUNS, workingSet: GATEWAY_WORKING_SET, waitMs: TURN_WAIT_MS };
    return claimTurns(sql, { gatewayId: this.gatewayId, ...this.lease, ...limits, mayWait });
  }

  private async claimQueued(): Promise<void> {
    this.start(await this.claimBy(this.deps.sql, true));
  }

  private async takeOver(): Promise<void> {
    if (!this.isServing()) return;
    this.start(await takeOverTurns(this.deps.sql, { gatewayId: this.gatewayId, ...this.lease }));
  }

  private async dropQueued(): Promise<void> {
    const { deps, gatewayId } = this;
    for (const turn of await listTurnsToDrop(deps.sql, { gatewayId, waitMs: deps.config.TURN_WAIT_MS })) {
      const outcome = turn.stopRequested
        ? ({ status: "stopped", text: "", usage: null } as const)
        : ({ status: "failed", text: "", code: "assistant_unavailable" } as const);
      const message = await finishTurn(deps, turn, null, outcome).catch((err: unknown) => {
        const { id: turn_id, assistantId: assistant_id, userId: user_id } = turn;
        deps.log.warn({ err, turn_id, assistant_id, user_id }, "turn could not be dropped; trying again");
        return null;
      });
      if (message) tellTurnEnd(deps, this.hub, turn, message, outcome);
    }
  }

  private async renew(): Promise<void> {
    const ids = [...this.runs.keys()];
    if (ids.length === 0) return;
    const held = await renewLeases(this.deps.sql, { ids, ...this.lease });
    const stopRequested = new Map(held.map((row) => [row.id, row.stopRequested]));
    for (const id of ids) {
      const run = this.runs.get(id);
      // Not ours any more, and not just ending: another process has taken it over.
      if (!stopRequested.has(id)) run?.lost();
      else if (stopRequested.get(id)) run?.stop();
    }
  }
}
