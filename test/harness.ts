import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pid } from "node:process";
import postgres from "postgres";
import { loadConfig } from "../src/config.ts";
import { migrate } from "../src/db/migrate.ts";
import { createWorkspaces } from "../src/clients/workspaces.ts";
import { connectDatabase, type Sql } from "../src/db/connect.ts";
import { createDeps, type Deps } from "../src/deps.ts";
import { startFiles } from "../src/files.ts";
import { newId } from "../src/lib/ids.ts";
import { createLog } from "../src/lib/log.ts";
import { LIST_PRICES } from "../src/lib/prices.ts";
import { startReef, type RunningReef } from "../src/process.ts";
import { renderGatewayConfig } from "../src/services/gatewayConfig.ts";
import { startFakeGateway, type FakeGateway } from "./fakes/gateway.ts";

const TOKEN = "test-gateway-token";
export const FILES_TOKEN = "test-files-token";
const TEMPLATE = "reef_template";

export interface TestReef {
  url: string;
  deps: Deps;
  sql: Sql;
  gateway: FakeGateway;
  dir: string;
  env: Record<string, string>;
  /** What was logged, line by line. */
  logs: string[];
  stop(): Promise<void>;
  /** Stops the API process only; `startProcess(env)` or a child takes its place. */
  stopProcess(): Promise<void>;
}

function requireEnv(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is missing: run the tests with npm test`);
  return value;
}

/** A database of its own: a clone of a template that the first caller migrates. Returns its URL. */
export async function createTestDatabase(base = requireEnv("TEST_DATABASE_URL")): Promise<string> {
  const admin = postgres(base, { max: 1, onnotice: () => undefined });
  const name = `reef_${newId().replaceAll("-", "")}`;
  const url = (database: string) => Object.assign(new URL(base), { pathname: `/${database}` }).toString();
  try {
    await admin`select pg_advisory_lock(4711)`;
    const [known] = await admin`select 1 from pg_database where datname = ${TEMPLATE}`;
    if (!known) {
      await admin.unsafe(`create database ${TEMPLATE}_new`);
      const template = connectDatabase(url(`${TEMPLATE}_new`), { max: 2, name: "template" });
      await migrate(template);
      await template.end();
      await admin.unsafe(`alter database ${TEMPLATE}_new rename to ${TEMPLATE}`);
    }
    await admin.unsafe(`create database ${name} template ${TEMPLATE}`);
  } finally {
    await admin.end();
  }
  return url(name);
}

/** The process beside a gateway, in this one: how it is reached, and its end. */
export function serveFolder(dir: string, port = 0): { env: Record<string, string>; stop(): Promise<void> } {
  const files = startFiles(
    {
      OPENCLAW_GATEWAY_DIR: dir,
      GATEWAY_FILES_HOST: "127.0.0.1",
      GATEWAY_FILES_PORT: port,
      GATEWAY_FILES_TOKEN: FILES_TOKEN,
      LOG_LEVEL: "silent",
    },
    createLog("silent"),
  );
  const url = `http://127.0.0.1:${files.port}`;
  return { env: { GATEWAY_FILES_URL: url, GATEWAY_FILES_TOKEN: FILES_TOKEN }, stop: () => files.stop() };
}

/** A fake gateway with a folder of its own, configured with nobody. */
export async function startTestGateway(): Promise<{ dir: string; gateway: FakeGateway }> {
  // The runner removes folders of processes that are no more; those of others that test right now stay.
  const dir = mkdtempSync(join(tmpdir(), `reef-test-${pid}-`));
  for (const name of ["state", "home", "workspaces"]) mkdirSync(join(dir, name));
  const config = {
    OPENAI_BASE_URL: "http://127.0.0.1:1/v1",
    CANARY_MODEL_URL: "http://127.0.0.1:18799",
    PRICES: LIST_PRICES,
    GATEWAY_MAX_RUNS: 16,
    TURN_TOTAL_MS: 300_000,
  };
  const workspaces = createWorkspaces(dir, createLog("silent"));
  await workspaces.writeConfig(renderGatewayConfig({ config, workspaces }, []));
  return { dir, gateway: await startFakeGateway({ dir, token: TOKEN }) };
}

/** A whole Reef on a database, a Redis prefix and a fake gateway of its own. `overrides` are environment variables. */
export async function startTestReef(overrides: Record<string, string> = {}): Promise<TestReef> {
  const { dir, gateway } = await startTestGateway();
  // test/api/remoteFiles.test.ts runs the suites of the folder once more like this.
  const files = process.env["REEF_TEST_FILES"] === "remote" ? serveFolder(dir) : null;
  const env = {
    NODE_ENV: "test",
    PORT: "0",
    DATABASE_URL: await createTestDatabase(),
    DATABASE_POOL: "8",
    REDIS_URL: requireEnv("TEST_REDIS_URL"),
    REDIS_PREFIX: `${newId()}:`,
    JWT_SECRET: "a-test-secret-of-enough-characters",
    REVEAL_EMAIL_TAKEN: "true",
    SIGNUPS_PER_HOUR: "1000000",
    OPENCLAW_GATEWAY_URL: gateway.url,
    OPENCLAW_GATEWAY_TOKEN: TOKEN,
    OPENCLAW_GATEWAY_DIR: dir,
    GATEWAY_RELOAD_DEBOUNCE_MS: "10",
    TURN_LEASE_MS: "1000",
    ...files?.env,
    ...overrides,
  };
  const first = await startProcess(env);
  return {
    ...first,
    sql: first.deps.sql,
    gateway,
    dir,
    env,
    stopProcess: () => first.stop(),
    stop: async () => {
      await first.stop().catch(() => undefined);
      await gateway.stop();
      await files?.stop();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

/** One more API process on the same database, Redis and gateway. */
export async function startProcess(
  env: Record<string, string>,
): Promise<{ url: string; deps: Deps; reef: RunningReef; logs: string[]; stop(): Promise<void> }> {
  const logs: string[] = [];
  const deps = createDeps(loadConfig(env), createLog("info", { write: (line: string) => void logs.push(line) }));
  const reef = await startReef(deps);
  return { url: `http://127.0.0.1:${reef.port}`, deps, reef, logs, stop: () => reef.stop() };
}

/** Waits until `check` gives something true; fails with `what` after `ms`. */
export async function until<T>(what: string, check: () => Promise<T> | T, ms = 30_000): Promise<NonNullable<T>> {
  const end = Date.now() + ms;
  for (;;) {
    const value = await check();
    if (value) return value;
    if (Date.now() > end) throw new Error(`waited ${ms} ms in vain until ${what}`);
    await Bun.sleep(15);
  }
}
