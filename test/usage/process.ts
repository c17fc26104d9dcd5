import { Redis } from "ioredis";
import type { Socket } from "node:net";
import type { Config } from "../../src/config.ts";
import { connectDatabase, type Sql } from "../../src/db/connect.ts";
import { listen } from "../../src/db/notify.ts";
import { realClock } from "../../src/lib/clock.ts";
import { createLog } from "../../src/lib/log.ts";
import { planChanged, type sweepReservations } from "../../src/services/usage.ts";
import { Proxy } from "../faults/proxy.ts";

export type ProcessDeps = Parameters<typeof sweepReservations>[0];

/** Transactions of a process that may be open at a time, and one connection to listen. */
export const OPEN_AT_ONCE = 3;
/** In place of a second: whoever gives up waiting for Redis goes on, and what it had sent may still arrive. */
const COMMAND_MS = 20;

/** What of a process spends a user's day: its connections, the notices it hears, and a network of its own to Redis. */
export class UsageProcess {
  /** How many notices of changed plans it has acted on; whether the last one came to Redis. */
  heard = 0;
  told = true;
  frozen = false;
  dead = false;
  /** When it last gave up waiting for an answer, in real time. */
  gaveUpMs = -Infinity;

  private constructor(
    readonly name: string,
    readonly sql: Sql,
    private readonly sockets: Set<Socket>,
    private readonly proxy: Proxy,
    readonly redis: Redis,
    private readonly prefix: string,
  ) {}

  static async open(
    name: string,
    around: { databaseUrl: string; redisUrl: string; prefix: string },
  ): Promise<UsageProcess> {
    const { databaseUrl, redisUrl, prefix } = around;
    const proxy = await Proxy.open(() => Number(new URL(redisUrl).port));
    const url = Object.assign(new URL(redisUrl), { port: String(proxy.port) }).toString();
    const redis = new Redis(url, {
      keyPrefix: prefix,
      maxRetriesPerRequest: 0,
      enableOfflineQueue: false,
      commandTimeout: COMMAND_MS,
      retryStrategy: () => 5,
    });
    redis.on("error", () => undefined);
    const sockets = new Set<Socket>();
    const sql = connectDatabase(databaseUrl, { max: OPEN_AT_ONCE + 1, name, sockets });
    const process = new UsageProcess(name, sql, sockets, proxy, redis, prefix);
    await process.begin();
    return process;
  }

  /** What a service is given. `asked` sees each word to Redis before it goes, and hears whether it was answered. */
  depsOf(asked: { before(): Promise<void>; failed(): void }): ProcessDeps {
    const ask = async <T>(send: () => Promise<T>): Promise<T> => {
      await asked.before();
      try {
        return await send();
      } catch (error) {
        this.gaveUpMs = performance.now();
        asked.failed();
        throw error;
      }
    };
    const redis = {
      eval: (...args: Parameters<Redis["eval"]>) => ask(() => this.redis.eval(...args)),
    } as unknown as Redis;
    const config = { REDIS_PREFIX: this.prefix } as Config;
    return { sql: this.sql, redis, config, clock: realClock, log: createLog("silent") };
  }

  /** Its connections to Redis are gone and no new ones come about. */
  cut(): void {
    this.proxy.refuse();
    this.proxy.cut();
  }

  /** Nothing comes through; what is sent meanwhile arrives later. */
  freeze(): void {
    this.frozen = true;
    this.proxy.freeze();
  }

  /** All is well with its network again. */
  async mend(): Promise<void> {
    this.frozen = false;
    this.proxy.pass();
    await this.isConnected();
  }

  /** Dies in the midst of whatever it does. */
  kill(): void {
    this.dead = true;
    for (const socket of this.sockets) socket.destroy();
    this.proxy.close();
    this.redis.disconnect();
    void this.sql.end({ timeout: 0 }).catch(() => undefined);
  }

  async close(): Promise<void> {
    this.dead = true;
    this.proxy.close();
    this.redis.disconnect();
    await this.sql.end({ timeout: 1 });
  }

  private async begin(): Promise<void> {
    const hear = async (id: string) => {
      let told = true;
      const set = (...args: Parameters<Redis["set"]>) =>
        this.redis.set(...args).catch((error: unknown) => {
          told = false;
          throw error;
        });
      await planChanged({ redis: { set } as unknown as Redis }, id);
      this.told = told;
      this.heard += 1;
    };
    await listen(
      this.sql,
      ({ kind, id }) => kind === "plan" && !this.dead && void hear(id),
      () => undefined,
    );
    await this.isConnected();
  }

  private async isConnected(): Promise<void> {
    for (let waited = 0; this.redis.status !== "ready"; waited++) {
      if (waited > 30_000) throw new Error("waited in vain until Redis answers");
      await Bun.sleep(1);
    }
  }
}
