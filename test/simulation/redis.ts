import type { Deps } from "../../src/deps.ts";
import type { Owner, World } from "./world.ts";

type Handler = (...args: string[]) => void;
interface Subscriber {
  owner: Owner;
  channels: Set<string>;
  handlers: Map<string, Handler[]>;
}

/** Redis as Reef uses it: some texts, and channels. It can be emptied, and be away. */
export class SimulatedRedis {
  private up = true;
  private readonly texts = new Map<string, string>();
  private subscribers: Subscriber[] = [];

  constructor(private readonly world: World) {}

  empty(): void {
    this.texts.clear();
  }

  stop(): void {
    this.up = false;
    this.empty();
  }

  start(): void {
    if (this.up) return;
    this.up = true;
    for (const subscriber of this.subscribers) this.tell(subscriber, "ready");
  }

  /** The two connections of one process. */
  connect(owner: Owner): Pick<Deps, "redis" | "subscriber"> {
    const subscriber: Subscriber = { owner, channels: new Set(), handlers: new Map() };
    this.subscribers = [...this.subscribers.filter((one) => !one.owner.dead), subscriber];
    const ask = <T>(connection: string, label: string, act: () => T) => this.ask(owner, connection, label, act);
    const redis = {
      set: (key: string, text: string) => ask("redis", "set", () => void this.texts.set(key, text)),
      get: (key: string) => ask("redis", "get", () => this.texts.get(key) ?? null),
      del: (key: string) => ask("redis", "del", () => Number(this.texts.delete(key))),
      eval: (_: string, keys: number, ...given: (string | number)[]) =>
        ask("redis", "eval", () => this.evaluate(given.slice(0, keys).map(String), given.slice(keys).map(String))),
      publish: (channel: string, payload: string) => ask("redis", "publish", () => this.publish(channel, payload)),
      pipeline: () => {
        const waiting: [string, string][] = [];
        return {
          publish: (channel: string, payload: string) => void waiting.push([channel, payload]),
          exec: () => ask("redis", "pipeline", () => waiting.forEach(([channel, text]) => this.publish(channel, text))),
        };
      },
    };
    const listening = {
      on: (event: string, handler: Handler) =>
        void subscriber.handlers.set(event, [...(subscriber.handlers.get(event) ?? []), handler]),
      subscribe: (channel: string) => ask("subscriber", "subscribe", () => void subscriber.channels.add(channel)),
      unsubscribe: (channel: string) =>
        ask("subscriber", "unsubscribe", () => void subscriber.channels.delete(channel)),
    };
    return { redis, subscriber: listening } as unknown as Pick<Deps, "redis" | "subscriber">;
  }

  // The scripts of services/usageCache.ts, by the numbers of their arguments. Nothing runs out of its time here: a wrong
  // "no" would stay.
  private evaluate([key = "", day = ""]: string[], args: string[]): unknown {
    if (args.length === 1) return this.readDay(key, args[0]!);
    if (args.length === 3) return this.keepLater(key, args[0]!, Number(args[2]));
    if (!this.keepLater(day, args[2]!, Number(args[4]))) return 0;
    this.texts.set(key, args[0]!);
    return 1;
  }

  private readDay(planKey: string, totalsPrefix: string): (string | null)[] {
    const plan = this.texts.get(planKey) ?? null;
    if (plan === null) return [null, null];
    return [plan, this.texts.get(totalsPrefix + (JSON.parse(plan) as { date: string }).date) ?? null];
  }

  private keepLater(key: string, totals: string, version: number): number {
    const held = this.texts.get(key);
    if (held && (JSON.parse(held) as { version: number }).version > version) return 0;
    this.texts.set(key, totals);
    return 1;
  }

  private ask<T>(owner: Owner, connection: string, label: string, act: () => T): Promise<T> {
    return new Promise((resolve, reject) => {
      const run = () => (this.up ? resolve(act()) : reject(new Error("simulated: redis is away")));
      this.world.add({ channel: `${connection}:${owner.name}`, owner, label: `redis ${label}`, run });
    });
  }

  private publish(channel: string, payload: string): number {
    const hearing = this.subscribers.filter((one) => one.channels.has(channel) && !one.owner.dead);
    for (const subscriber of hearing) this.tell(subscriber, "message", channel, payload);
    return hearing.length;
  }

  private tell(subscriber: Subscriber, event: string, ...args: string[]): void {
    const { owner } = subscriber;
    const run = () => {
      // What was on its way when Redis went away is lost.
      if (this.up) for (const handler of subscriber.handlers.get(event) ?? []) handler(...args);
    };
    this.world.add({ channel: `bus:${owner.name}`, owner, label: `redis ${event}`, run });
  }
}
