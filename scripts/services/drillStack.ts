import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { Redis } from "ioredis";
import { loadConfig, type Config } from "../../src/config.ts";
import { startFakeOpenAi, type FakeOpenAi } from "../../test/fakes/openai.ts";
import { startGateway } from "./gateway.ts";
import { startPostgres, type Postgres } from "./postgres.ts";
import { freePort, lastLines, spawnChild, StartError, waitUntil, type Log } from "./process.ts";
import { dyingWithUs } from "../../src/lib/deathSignal.ts";

const root = resolve(import.meta.dir, "../..");
const PREFIX = "reef-drill-";

/** A Reef of its own that reaches nobody: no mail server, no Stripe, no provider but the scripted one, no alarms. */
export interface Scratch {
  folder: string;
  gatewayDir: string;
  postgres: Postgres;
  model: FakeOpenAi;
  env: Record<string, string>;
  config: Config;
  /** Parks, then starts the gateway and an API process; resolves with its address. */
  start(): Promise<string>;
  /** Runs a job of src/jobs with the settings of this Reef; resolves with its output. */
  run(job: string, args: string[]): Promise<string>;
  /** Stops what runs and removes everything. */
  close(): Promise<void>;
}

/** Makes the folder, the database server and the scripted model. `redisUrl` is shared: the keys have a prefix of their own. */
export async function createScratch(options: { gatewayId: string; redisUrl: string; log: Log }): Promise<Scratch> {
  removeLeft();
  const folder = mkdtempSync(join(tmpdir(), `${PREFIX}${process.pid}-`));
  const closers: (() => unknown)[] = [() => rmSync(folder, { recursive: true, force: true })];
  const close = async () => {
    // In order: each before what it stands on. What can't be ended ends with us.
    for (const closer of closers.reverse()) await Promise.resolve(closer()).catch(() => undefined);
  };
  try {
    // As root Postgres runs as another user, who must get through.
    chmodSync(folder, 0o711);
    const gatewayDir = join(folder, "gateway");
    mkdirSync(gatewayDir, { mode: 0o700 });
    const model = await startFakeOpenAi();
    closers.push(() => model.close());
    const postgres = await startPostgres({ dataDir: join(folder, "postgres"), durable: false, log: options.log });
    closers.push(() => postgres.stop());
    const env = environment({ ...options, gatewayDir, folder, model: model.url, database: postgres.url });
    closers.push(() => forgetKeys(env));
    const scratch = { folder, gatewayDir, postgres, model, env, config: loadConfig(env), close };
    return {
      ...scratch,
      start: () => startAll(scratch, closers, options.log),
      run: (job, args) => runJob(env, job, args),
    };
  } catch (error) {
    await close();
    throw error;
  }
}

function environment(given: {
  gatewayId: string;
  gatewayDir: string;
  folder: string;
  model: string;
  database: string;
  redisUrl: string;
}): Record<string, string> {
  const token = crypto.randomUUID();
  return {
    PATH: String(process.env["PATH"]),
    NODE_ENV: "production",
    LOG_LEVEL: "warn",
    PORT: String(freePort()),
    DATABASE_URL: given.database,
    DATABASE_POOL: "6",
    REDIS_URL: given.redisUrl,
    REDIS_PREFIX: `drill-${token}:`,
    JWT_SECRET: crypto.randomUUID(),
    GATEWAY_ID: given.gatewayId,
    OPENCLAW_GATEWAY_URL: `ws://127.0.0.1:${freePort()}`,
    OPENCLAW_GATEWAY_TOKEN: token,
    OPENCLAW_GATEWAY_DIR: given.gatewayDir,
    OPENAI_BASE_URL: given.model,
    OPENAI_API_KEY: "scripted",
    // Nothing listens there: an event of Stripe's that was not processed yet stays so.
    STRIPE_API_BASE: "http://127.0.0.1:1",
    BACKUP_DIR: join(given.folder, "backups"),
  };
}

async function startAll(
  scratch: Pick<Scratch, "env" | "folder" | "gatewayDir">,
  closers: (() => unknown)[],
  log: Log,
): Promise<string> {
  const { env, folder, gatewayDir } = scratch;
  await runJob(env, "parkAgents", []);
  const gateway = await startGateway({
    dir: gatewayDir,
    port: Number(new URL(env["OPENCLAW_GATEWAY_URL"]!).port),
    token: env["OPENCLAW_GATEWAY_TOKEN"]!,
    env,
    log,
  });
  closers.push(async () => {
    gateway.kill();
    await gateway.exited;
  });
  const logFile = join(folder, "api.log");
  const api = spawnChild({
    command: [process.execPath, "--no-env-file", join(root, "src/main.ts")],
    env,
    deathSignal: "KILL",
    logFile,
  });
  closers.push(() => api.stop("SIGTERM", 5_000));
  const url = `http://127.0.0.1:${env["PORT"]}`;
  if (!(await waitUntil(api, 120_000, async () => (await fetch(`${url}/readyz`)).ok)))
    throw new StartError(`The restored Reef did not start: ${lastLines(logFile, 3)}`);
  return url;
}

async function runJob(env: Record<string, string>, job: string, args: string[]): Promise<string> {
  const command = [process.execPath, "--no-env-file", join(root, `src/jobs/${job}.ts`), ...args];
  const child = Bun.spawn([...dyingWithUs("KILL"), ...command], { env, stdout: "pipe", stderr: "ignore" });
  const text = await new Response(child.stdout).text();
  await child.exited;
  return text;
}

/** Redis is shared with the living Reef; what the drill wrote there goes at once. */
async function forgetKeys(env: Record<string, string>): Promise<void> {
  const redis = new Redis(env["REDIS_URL"]!);
  try {
    for await (const keys of redis.scanStream({ match: `${env["REDIS_PREFIX"]}*`, count: 1_000 }))
      if ((keys as string[]).length > 0) await redis.del(keys as string[]);
  } finally {
    redis.disconnect();
  }
}

/** Folders of drills that were killed: their names tell the process. */
function removeLeft(): void {
  for (const name of readdirSync(tmpdir()).filter((entry) => entry.startsWith(PREFIX))) {
    const pid = name.slice(PREFIX.length).split("-")[0];
    if (!existsSync(`/proc/${pid}`)) rmSync(join(tmpdir(), name), { recursive: true, force: true });
  }
}
