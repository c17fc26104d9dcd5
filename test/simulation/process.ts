import { loadConfig } from "../../src/config.ts";
import type { Deps } from "../../src/deps.ts";
import { startLoop } from "../../src/lib/loop.ts";
import type { Log } from "../../src/lib/log.ts";
import { createMetrics } from "../../src/lib/metrics.ts";
import { NO_TRACES } from "../../src/lib/trace.ts";
import { ChatHub } from "../../src/services/chatHub.ts";
import { TurnEngine } from "../../src/services/turnEngine.ts";
import { ProcessDatabase } from "./database.ts";
import { SimulatedGatewayClient } from "./gatewayClient.ts";
import type { Connection } from "./connection.ts";
import type { Surroundings } from "./surroundings.ts";
import type { Owner } from "./world.ts";

export const budgets = { firstTextMs: 5_000, betweenMs: 4_000, totalMs: 20_000, waitMs: 60_000, leaseMs: 2_000 };
/** Longer than the hub's own comparison of what is open here with the rows. */
export const RESYNC_MS = 30_000;
const DRAIN_MS = 8_000;
/** A disk may be slow: much else happens meanwhile. */
const DISK_WEIGHT = 1;

/** A simulated API process: the real engine, hub and frames on doubles of all that is outside. */
export class SimulatedProcess implements Owner {
  dead = false;
  frozen = false;
  /** Notices that Postgres sends are not heard: the connection that listens is cut. */
  deaf = false;
  stopping = false;
  readonly id: string;
  readonly deps: Deps;
  readonly hub: ChatHub;
  readonly database: ProcessDatabase;
  readonly gateway: SimulatedGatewayClient;
  readonly connections = new Set<Connection>();
  readonly engine: TurnEngine;
  private readonly resync: ReturnType<typeof startLoop>;
  private readonly closers: (() => unknown)[] = [];

  constructor(
    readonly name: string,
    private readonly around: Surroundings,
  ) {
    const { world, lane, random } = around;
    this.id = random.uuid();
    this.database = new ProcessDatabase(world, this, lane.pool, {
      crash: () => this.kill(),
      notified: (payload) => around.notified(payload),
    });
    this.gateway = new SimulatedGatewayClient(world, this, around.gateway, random);
    this.deps = this.wire();
    this.hub = new ChatHub(this.deps);
    this.engine = new TurnEngine(this.deps, this.hub);
    this.resync = startLoop({
      name: "chat resync",
      run: () => this.hub.resync(),
      debounceMs: 100,
      maxWaitMs: 1000,
      resyncMs: RESYNC_MS,
      backoffMs: 500,
      log: this.deps.log,
      clock: this.deps.clock,
    });
  }

  running(): number {
    return this.engine.running();
  }

  /** Nothing of it happens any more; what it had written may still be on its way. */
  kill(): void {
    if (this.dead) return;
    this.dead = true;
    this.frozen = false;
    this.gateway.lose();
    this.database.cutTransactions();
    for (const connection of this.connections) connection.processGone();
  }

  /** Stands still. Postgres ends the transactions of one that is silent. */
  freeze(): void {
    this.frozen = true;
    this.database.cutTransactions();
  }

  thaw(): void {
    this.frozen = false;
  }

  /** Ends in order, as on SIGTERM. */
  stop(): void {
    if (this.stopping || this.dead) return;
    this.stopping = true;
    for (const connection of this.connections) connection.sendAway();
    const ended = async () => {
      await Promise.all([this.engine.stop(DRAIN_MS), this.resync.stop()]);
      for (const close of this.closers.reverse()) close();
      this.kill();
    };
    void ended();
  }

  /** What `listen` and `startReef` do with a notice. */
  hear(kind: string, id: string): void {
    if (kind === "turn") this.engine.wake();
    else if (kind === "stop") this.engine.wakeStops();
    else if (kind === "message") {
      const [assistantId = "", seq = "0"] = id.split(":");
      this.hub.messageStored(assistantId, Number(seq));
    } else if (kind === "usage") void this.hub.usageChanged(id);
    else if (kind === "assistant") {
      this.hub.assistantChanged(id);
      this.engine.wake();
    }
  }

  /** It listens again: what was sent meanwhile is lost. */
  listenAgain(): void {
    this.deaf = false;
    this.engine.wake();
    this.engine.wakeStops();
    this.resync.wake();
  }

  private wire(): Deps {
    const { world, redis, gatewayId } = this.around;
    const guarded = () =>
      new Promise<number>((resolve) =>
        world.add({
          channel: world.unique("disk"),
          owner: this,
          label: "guard",
          weight: DISK_WEIGHT,
          run: () => resolve(0),
        }),
      );
    const parts = {
      config: configOf(gatewayId),
      log: this.log(),
      clock: world.clockOf(this),
      metrics: createMetrics(),
      traces: NO_TRACES,
      processId: this.id,
      sql: this.database.sql,
      ...redis.connect(this),
      gateway: this.gateway.client,
      workspaces: { guard: guarded },
      onClose: (_name: string, _deadlineMs: number, close: () => unknown) => this.closers.push(close),
    };
    return parts as unknown as Deps;
  }

  private log(): Log {
    const write = (fields: Record<string, unknown>, text = "") => {
      if (this.dead) return;
      if (text === "turn ended") this.around.ended.push({ turnId: String(fields["turn_id"]), by: this.id });
      const error = fields["err"] instanceof Error ? ` (${fields["err"].message})` : "";
      this.around.world.note(() => `${this.name}:   log: ${text}${error}`);
    };
    const bound = (more: Record<string, unknown>): unknown => {
      const line = (fields: Record<string, unknown> | string, text?: string) =>
        typeof fields === "string" ? write(more, fields) : write({ ...more, ...fields }, text);
      return { info: line, warn: line, error: line, child: (even: object) => bound({ ...more, ...even }) };
    };
    return bound({}) as Log;
  }
}

function configOf(gatewayId: string) {
  return loadConfig({
    NODE_ENV: "test",
    DATABASE_URL: "postgres://simulated@127.0.0.1/simulated",
    REDIS_URL: "redis://127.0.0.1",
    JWT_SECRET: "a-test-secret-of-enough-characters",
    OPENCLAW_GATEWAY_URL: "ws://127.0.0.1",
    OPENCLAW_GATEWAY_TOKEN: "simulated-gateway-token",
    OPENCLAW_GATEWAY_DIR: "simulated",
    GATEWAY_ID: gatewayId,
    TURN_FIRST_TEXT_MS: String(budgets.firstTextMs),
    TURN_BETWEEN_TEXT_MS: String(budgets.betweenMs),
    TURN_TOTAL_MS: String(budgets.totalMs),
    TURN_WAIT_MS: String(budgets.waitMs),
    TURN_LEASE_MS: String(budgets.leaseMs),
  });
}
