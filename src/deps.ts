import type { Redis } from "ioredis";
import type { Socket } from "node:net";
import type { Config } from "./config.ts";
import { connectDatabase, type Sql } from "./db/connect.ts";
import { createCommonPasswords } from "./clients/commonPasswords.ts";
import { createGatewayClient, type GatewayClient } from "./clients/gateway.ts";
import { createAppleTokens, type AppleTokens } from "./clients/appleTokens.ts";
import { createIdentityProviders, type IdentityProviders } from "./clients/identityProviders.ts";
import { createAlarmSender, type AlarmSender } from "./clients/alarmSender.ts";
import { createNoGateway } from "./clients/noGateway.ts";
import { createMailer, type Mailer } from "./clients/mailer.ts";
import { connectRedis } from "./clients/redis.ts";
import { createSpeechProvider, type SpeechProvider } from "./clients/speech.ts";
import { createStripeClient, openStripe, type StripeClient } from "./clients/stripe.ts";
import { createTraces } from "./clients/traces.ts";
import { traceSpeech } from "./clients/speechTraces.ts";
import { createStripeCatalog, type StripeCatalog } from "./clients/stripeCatalog.ts";
import { createStripeSales, type StripeSales } from "./clients/stripeSales.ts";
import { createRemoteWorkspaces } from "./clients/remoteWorkspaces.ts";
import { createWorkspaces, type Workspaces } from "./clients/workspaces.ts";
import { createAudioInspector, type AudioInspector } from "./lib/audio/inspector.ts";
import { realClock, type Clock } from "./lib/clock.ts";
import { newId } from "./lib/ids.ts";
import type { Log } from "./lib/log.ts";
import { createLoopDelay, type LoopDelay } from "./lib/loopDelay.ts";
import { createLocalCounts, type LocalCounts } from "./lib/localCounts.ts";
import { createMemoryBudget, type MemoryBudget } from "./lib/memoryBudget.ts";
import { createMetrics, type Metrics } from "./lib/metrics.ts";
import { createPasswords, type Passwords } from "./lib/passwords.ts";
import { withDeadline } from "./lib/retry.ts";
import type { Traces } from "./lib/trace.ts";

/** Everything a service may need. A function takes `Pick<Deps, …>` of what it touches. */
export interface Deps {
  config: Config;
  log: Log;
  clock: Clock;
  /** Names this process: owner of leases, origin of frames. */
  processId: string;
  sql: Sql;
  /** One connection apart, so that the watch over the database never waits behind the pool's work. */
  watchSql: Sql;
  /** Destroys every connection to the database; the next query opens a new one. */
  severDatabase(): void;
  redis: Redis;
  /** A second connection: one that subscribes can do nothing else. */
  subscriber: Redis;
  gateway: GatewayClient;
  workspaces: Workspaces;
  identityProviders: IdentityProviders;
  /** Null where Apple's key is not configured. */
  appleTokens: AppleTokens | null;
  /** Null: mails can't go anywhere and wait in the outbox. */
  mailer: Mailer | null;
  alarmSender: AlarmSender;
  /** Null without OPENAI_API_KEY: nothing is heard or spoken. */
  speech: SpeechProvider | null;
  audio: AudioInspector;
  /** What recordings may take of the process's memory. */
  soundMemory: MemoryBudget;
  stripe: StripeClient;
  /** Null where nothing is sold: there is no STRIPE_SECRET_KEY. */
  sales: StripeSales | null;
  /** What is sold; null as above. */
  catalog: StripeCatalog | null;
  passwords: Passwords;
  localCounts: LocalCounts;
  metrics: Metrics;
  loopDelay: LoopDelay;
  traces: Traces;
  /** Registers what closes with the process; closers run in reverse order, each within its deadline. */
  onClose(name: string, deadlineMs: number, close: () => unknown): void;
  close(): Promise<void>;
}

/** Opens the connections. Nothing is awaited here: a server that is down is retried for ever by its own client. */
export function createDeps(config: Config, log: Log): Deps {
  const closers: { name: string; deadlineMs: number; close: () => unknown }[] = [];
  const onClose: Deps["onClose"] = (name, deadlineMs, close) => closers.push({ name, deadlineMs, close });

  const processId = newId();
  const traces = createTraces(config, log, processId);
  onClose("traces", 500, () => traces.close());
  const sockets = new Set<Socket>();
  const sql = connectDatabase(config.DATABASE_URL, { max: config.DATABASE_POOL, name: "reef", sockets });
  onClose("postgres", 3000, () => sql.end({ timeout: 2 }));
  const watchSql = connectDatabase(config.DATABASE_URL, { max: 1, name: "reef watch", sockets });
  onClose("postgres watch", 1000, () => watchSql.end({ timeout: 0 }));
  const redis = connectRedis(config.REDIS_URL, config.REDIS_PREFIX, log);
  onClose("redis", 1000, () => redis.disconnect());
  const subscriber = connectRedis(config.REDIS_URL, config.REDIS_PREFIX, log);
  onClose("redis subscriber", 1000, () => subscriber.disconnect());
  const { gateway, workspaces } = config.ROLE === "front" ? createNoGateway() : openGateway(config, log);
  onClose("gateway", 1000, () => gateway.close());
  const mailer = createMailer(config, log);
  onClose("mailer", 1000, () => mailer?.close());
  const audio = createAudioInspector();
  onClose("audio inspector", 1000, () => audio.close());
  const metrics = createMetrics();
  const loopDelay = createLoopDelay();
  onClose("loop delay", 100, () => loopDelay.close());

  const close = async () => {
    for (const closer of closers.reverse()) {
      await withDeadline(Promise.resolve().then(closer.close), closer.deadlineMs, `closing ${closer.name}`).catch(
        (err: unknown) => log.warn({ err, closer: closer.name }, "did not close in time"),
      );
    }
  };
  return {
    config,
    log,
    clock: realClock,
    processId,
    sql,
    watchSql,
    severDatabase: () => sockets.forEach((socket) => socket.destroy()),
    redis,
    subscriber,
    gateway,
    workspaces,
    identityProviders: createIdentityProviders(config, log),
    appleTokens: createAppleTokens(config),
    mailer,
    alarmSender: createAlarmSender(config, mailer),
    passwords: createPasswords(createCommonPasswords()),
    speech: traceSpeech(createSpeechProvider(config, log, metrics), traces, config),
    audio,
    soundMemory: createMemoryBudget(config.VOICE_MEMORY_BYTES),
    stripe: createStripeClient(config),
    ...openShop(config),
    localCounts: createLocalCounts(),
    metrics,
    loopDelay,
    traces,
    onClose,
    close,
  };
}

function openGateway(config: Config, log: Log): { gateway: GatewayClient; workspaces: Workspaces } {
  const { GATEWAY_FILES_URL: filesUrl, GATEWAY_FILES_TOKEN: filesToken, OPENCLAW_GATEWAY_DIR: dir } = config;
  const { GATEWAY_ID: id, OPENCLAW_GATEWAY_URL: url, OPENCLAW_GATEWAY_TOKEN: token } = config;
  const isServed = filesUrl !== undefined && filesToken !== undefined;
  return {
    gateway: createGatewayClient({ id, url, token, log }),
    workspaces: isServed
      ? createRemoteWorkspaces({ url: filesUrl, token: filesToken, dir })
      : createWorkspaces(dir, log),
  };
}

function openShop(config: Config): Pick<Deps, "sales" | "catalog"> {
  const stripe = openStripe(config);
  return { sales: stripe && createStripeSales(stripe), catalog: stripe && createStripeCatalog(stripe) };
}
