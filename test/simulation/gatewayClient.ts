import type { GatewayClient, GatewayListeners } from "../../src/clients/gateway.ts";
import { GatewayError } from "../../src/clients/gatewayConnection.ts";
import type { RunEvent } from "../../src/clients/gatewayFrames.ts";
import type { Link, SimulatedGateway } from "./gateway.ts";
import type { Random } from "./random.ts";
import type { Owner, World } from "./world.ts";

export const CALL_TIMEOUT_MS = 15_000;

interface Call {
  reject: (error: Error) => void;
  stopTimer: () => void;
}

const failed = (kind: GatewayError["kind"], code: string) => new GatewayError(kind, code, `simulated: ${code}`);

/** One process's client of the simulated gateway: a connection that can be cut, and answers that can be lost. */
export class SimulatedGatewayClient implements Link {
  /** How many of the next answers are lost on their way. */
  answersToLose = 0;
  private ready = false;
  private life = 0;
  private readonly listeners: GatewayListeners[] = [];
  private readonly calls = new Set<Call>();

  constructor(
    private readonly world: World,
    private readonly owner: Owner,
    private readonly gateway: SimulatedGateway,
    private readonly random: Random,
  ) {
    this.reconnectLater(0);
  }

  readonly client: GatewayClient = {
    id: "simulated",
    isReady: () => this.ready,
    hello: () => null,
    listen: (listeners) => void this.listeners.push(listeners),
    sendMessage: ({ agentId, key, text }) =>
      this.call("chat.send", () => {
        const { status, afterwards } = this.gateway.send(agentId, key, text);
        return { value: status, afterwards };
      }),
    abortRun: ({ key }) => this.call("chat.abort", () => ({ value: this.gateway.abort(key) })),
    readHistory: ({ agentId, limit }) =>
      this.call("chat.history", () => ({ value: structuredClone(this.gateway.history(agentId, limit)) })),
    listAgents: () => Promise.resolve([]),
    deleteAgent: () => Promise.resolve(),
    forgetConversation: () => Promise.resolve(),
    readConfigStatus: () => Promise.resolve({ valid: true, applied: true, hash: "", issues: [] }),
    close: () => this.lose(),
  };

  event(event: RunEvent): void {
    this.send(`hears ${event.kind}`, () => {
      for (const listener of this.listeners) listener.onRun?.(event);
    });
  }

  send(label: string, deliver: () => void): void {
    this.world.add({ channel: this.inbound(), owner: this.owner, label, run: deliver });
  }

  /** The connection is gone: what was on its way to here is lost, what was on its way there may arrive. */
  lose(): void {
    if (!this.ready) return;
    this.ready = false;
    this.gateway.links.delete(this);
    this.world.drop(this.inbound());
    if (this.random.chance(0.5)) this.world.drop(this.outbound());
    this.life += 1;
    const lost = [...this.calls];
    this.calls.clear();
    this.send("connection lost", () => {
      for (const call of lost) {
        call.stopTimer();
        call.reject(failed("unknown", "CONNECTION_LOST"));
      }
      for (const listener of this.listeners) listener.onLost?.();
    });
    this.reconnectLater(this.random.int(100, 1500));
  }

  private reconnectLater(ms: number): void {
    this.world.clockOf(this.owner).setTimeout(() => {
      if (!this.gateway.up) return this.reconnectLater(this.random.int(100, 1500));
      this.send("connected", () => {
        if (!this.gateway.up || this.ready) return this.reconnectLater(500);
        this.ready = true;
        this.gateway.links.add(this);
        for (const listener of this.listeners) listener.onReady?.({ version: "simulated", bootId: "" });
      });
    }, ms);
  }

  private call<T>(method: string, act: () => { value: T; afterwards?: () => void }): Promise<T> {
    if (!this.ready) return Promise.reject(failed("unsent", "NOT_CONNECTED"));
    const { life } = this;
    return new Promise<T>((resolve, reject) => {
      const clock = this.world.clockOf(this.owner);
      const timer = clock.setTimeout(() => {
        this.calls.delete(call);
        reject(failed("unknown", "TIMEOUT"));
      }, CALL_TIMEOUT_MS);
      const call: Call = { reject, stopTimer: () => clock.clearTimeout(timer) };
      this.calls.add(call);
      const answer = (settle: () => void) => {
        if (this.life !== life || this.owner.dead) return;
        if (this.answersToLose > 0) return void (this.answersToLose -= 1);
        this.send(`answer to ${method}`, () => {
          if (!this.calls.delete(call)) return;
          call.stopTimer();
          settle();
        });
      };
      const run = () => this.gateway.up && perform(act, answer, resolve, reject);
      this.world.add({
        channel: this.outbound(),
        owner: this.world.outside,
        label: `${this.owner.name} ${method}`,
        run,
      });
    });
  }

  private inbound(): string {
    return `from gateway:${this.owner.name}:${this.life}`;
  }

  private outbound(): string {
    return `to gateway:${this.owner.name}:${this.life}`;
  }
}

function perform<T>(
  act: () => { value: T; afterwards?: () => void },
  answer: (settle: () => void) => void,
  resolve: (value: T) => void,
  reject: (error: Error) => void,
): void {
  try {
    const { value, afterwards } = act();
    answer(() => resolve(value));
    afterwards?.();
  } catch (error) {
    answer(() => reject(error as Error));
  }
}
