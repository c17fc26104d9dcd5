import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { startGateway, type Gateway } from "../../scripts/services/gateway.ts";
import { freePort } from "../../scripts/services/process.ts";
import { newId } from "../../src/lib/ids.ts";
import { startFakeOpenAi } from "../fakes/openai.ts";
import { createTestDatabase, startProcess, until } from "../harness.ts";

export type FakeOpenAi = Awaited<ReturnType<typeof startFakeOpenAi>>;
export type Process = Awaited<ReturnType<typeof startProcess>>;

/** A Reef on the real, pinned gateway; only the model behind it is ours. */
export interface RealReef {
  url: string;
  process: Process;
  gateway: Gateway;
  model: FakeOpenAi;
  dir: string;
  env: Record<string, string>;
  /** Ends the gateway (by SIGKILL if asked) and starts it again, as systemd or npm start would. */
  restartGateway(kill?: boolean): Promise<void>;
  restartProcess(): Promise<void>;
  stop(): Promise<void>;
}

const TOKEN = "real-gateway-test-token";

export async function startRealReef(overrides: Record<string, string> = {}): Promise<RealReef> {
  const dir = mkdtempSync(join(tmpdir(), "reef-gateway-"));
  const model = await startFakeOpenAi({});
  const port = freePort();
  const env = {
    NODE_ENV: "test",
    PORT: "0",
    DATABASE_URL: await createTestDatabase(),
    DATABASE_POOL: "8",
    REDIS_URL: process.env["TEST_REDIS_URL"] ?? "",
    REDIS_PREFIX: `${newId()}:`,
    JWT_SECRET: "a-test-secret-of-enough-characters",
    OPENCLAW_GATEWAY_URL: `ws://127.0.0.1:${port}`,
    OPENCLAW_GATEWAY_TOKEN: TOKEN,
    OPENCLAW_GATEWAY_DIR: dir,
    OPENAI_BASE_URL: model.url,
    GATEWAY_RELOAD_DEBOUNCE_MS: "50",
    ...overrides,
  };
  const start = async () => {
    await park(env);
    return startGateway({
      dir,
      port,
      token: TOKEN,
      env: { PATH: process.env["PATH"], OPENAI_API_KEY: "planted-provider-key" },
      log: () => undefined,
    });
  };
  const [gateway, first] = await Promise.all([start(), startProcess(env)]);
  const reef: RealReef = {
    url: first.url,
    process: first,
    gateway,
    model,
    dir,
    env,
    async restartGateway(kill = false) {
      if (kill) reef.gateway.kill();
      else await reef.gateway.stop();
      await reef.gateway.exited;
      reef.gateway = await start();
    },
    async restartProcess() {
      await reef.process.stop();
      reef.process = await startProcess(env);
      reef.url = reef.process.url;
    },
    async stop() {
      await reef.process.stop();
      await reef.gateway.stop();
      await model.close();
      rmSync(dir, { recursive: true, force: true });
    },
  };
  await until("the gateway is connected", () => reef.process.deps.gateway.isReady(), 30_000);
  return reef;
}

async function park(env: Record<string, string>): Promise<void> {
  const job = Bun.spawn([process.execPath, "--no-env-file", resolve(import.meta.dir, "../../src/jobs/parkAgents.ts")], {
    env: { ...env },
    stdout: "ignore",
    stderr: "inherit",
  });
  if ((await job.exited) !== 0) throw new Error("parking failed");
}

/** The files under a folder that hold a phrase, whatever their format. */
export function filesWith(folder: string, phrase: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: "utf8" })
    .map((name) => join(folder, name))
    .filter((path) => statSync(path).isFile() && readFileSync(path).includes(phrase));
}
