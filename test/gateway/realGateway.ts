import { chmodSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { startGateway, type Gateway } from "../../scripts/services/gateway.ts";
import { freePort, spawnChild } from "../../scripts/services/process.ts";
import { loadConfig } from "../../src/config.ts";
import { connectDatabase, type Sql } from "../../src/db/connect.ts";
import { createDeps } from "../../src/deps.ts";
import { createLog } from "../../src/lib/log.ts";
import { startReef, type RunningReef } from "../../src/process.ts";
import { startFakeOpenAi, type FakeOpenAi } from "../fakes/openai.ts";

const root = resolve(import.meta.dir, "../..");

/** Secrets of this stack: they must never come back from an assistant. */
export const MODEL_KEY = "sk-planted-3f9c2d7a";
export const GATEWAY_TOKEN = "planted-gateway-token-8b41e6";

/** A whole Reef on a real gateway, a scripted model and a database of its own. One per test file. */
export interface Stack {
  /** The settings of this Reef, for a job beside it. */
  env: Record<string, string>;
  /** The gateway's folder. */
  dir: string;
  /** Around it: what is in here, but not in `dir`, is the host's. */
  folder: string;
  model: FakeOpenAi;
  sql: Sql;
  url(): string;
  stopReef(): Promise<void>;
  /** Starts Reef again, with other settings where given. */
  startReef(env?: Record<string, string>): Promise<void>;
  stopGateway(): Promise<void>;
  /** SIGKILL, and waits until it is gone. */
  killGateway(): Promise<void>;
  /** The step before a start, then the start. */
  startGateway(): Promise<void>;
  close(): Promise<void>;
}

/**
 * Starts it all; `env` are settings of Reef, `server` another Postgres than that of the tests. Needs TEST_DATABASE_URL and
 * TEST_REDIS_URL (scripts/test.ts).
 */
export async function startStack(
  env: Record<string, string> = {},
  server = process.env["TEST_DATABASE_URL"],
): Promise<Stack> {
  const folder = mkdtempSync(join(tmpdir(), "reef-gateway-"));
  chmodSync(folder, 0o700);
  const dir = join(folder, "gateway");
  mkdirSync(dir, { mode: 0o700 });
  const database = await createDatabase(server);
  const model = await startFakeOpenAi({ apiKey: MODEL_KEY });
  const port = freePort();
  const base = settings({ dir, port, database: database.url, redisPrefix: `${database.name}:`, model: model.url });
  let gateway: Gateway | null = null;
  let reef: RunningReef | null = null;
  const stack: Stack = {
    dir,
    folder,
    model,
    sql: connectDatabase(database.url, { max: 3, name: "test" }),
    env: { ...base, ...env },
    url: () => `http://127.0.0.1:${reef?.port}`,
    async stopReef() {
      await reef?.stop();
      reef = null;
    },
    async startReef(changed = {}) {
      const config = loadConfig({ ...base, ...env, ...changed });
      reef = await startReef(createDeps(config, createLog(process.env["TEST_LOG_LEVEL"] ?? "silent")));
    },
    async stopGateway() {
      await gateway?.stop();
      gateway = null;
    },
    async killGateway() {
      gateway?.kill();
      await gateway?.exited;
      gateway = null;
    },
    async startGateway() {
      await parkAgents({ ...base, ...env }, join(folder, "park.log"));
      gateway = await startGateway({
        dir,
        port,
        token: GATEWAY_TOKEN,
        env: { PATH: process.env["PATH"], OPENAI_API_KEY: MODEL_KEY, OPENAI_BASE_URL: model.url },
        log: () => undefined,
      });
    },
    async close() {
      await stack.stopReef();
      await stack.killGateway();
      await stack.sql.end({ timeout: 2 });
      await model.close();
      await database.drop();
      rmSync(folder, { recursive: true, force: true });
    },
  };
  await stack.startGateway();
  await stack.startReef();
  return stack;
}

function settings(given: { dir: string; port: number; database: string; redisPrefix: string; model: string }) {
  return {
    NODE_ENV: "test",
    PORT: "0",
    REVEAL_EMAIL_TAKEN: "true",
    SIGNUPS_PER_HOUR: "1000000",
    DATABASE_URL: given.database,
    DATABASE_POOL: "6",
    REDIS_URL: String(process.env["TEST_REDIS_URL"]),
    REDIS_PREFIX: given.redisPrefix,
    JWT_SECRET: "a secret of the gateway tests, long enough",
    OPENCLAW_GATEWAY_URL: `ws://127.0.0.1:${given.port}`,
    OPENCLAW_GATEWAY_TOKEN: GATEWAY_TOKEN,
    OPENCLAW_GATEWAY_DIR: given.dir,
    OPENAI_BASE_URL: given.model,
    GATEWAY_RELOAD_DEBOUNCE_MS: "50",
  };
}

async function createDatabase(
  given: string | undefined,
): Promise<{ url: string; name: string; drop(): Promise<void> }> {
  if (!given) throw new Error("TEST_DATABASE_URL is missing: run the tests with npm test.");
  const name = `reef_gateway_${crypto.randomUUID().slice(0, 8)}`;
  const admin = connectDatabase(given, { max: 1, name: "test" });
  await admin.unsafe(`create database ${name}`);
  const url = new URL(given);
  url.pathname = `/${name}`;
  return {
    url: url.href,
    name,
    async drop() {
      await admin.unsafe(`drop database ${name} with (force)`);
      await admin.end({ timeout: 2 });
    },
  };
}

/** The step before each start of a gateway. */
export async function parkAgents(env: Record<string, string>, logFile: string): Promise<void> {
  const job = spawnChild({
    command: [process.execPath, "--no-env-file", join(root, "src/jobs/parkAgents.ts")],
    env: { PATH: String(process.env["PATH"]), ...env },
    deathSignal: "KILL",
    logFile,
  });
  if ((await job.exited) !== 0) throw new Error("The step before the gateway's start failed.");
}
