import { existsSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { openDataFolder } from "./services/dataFolder.ts";
import { keepGateway } from "./services/gatewayKeeper.ts";
import { startPostgres } from "./services/postgres.ts";
import {
  diskFull,
  explain,
  freePort,
  isDiskFull,
  lastLines,
  present,
  rotateLog,
  spawnChild,
  StartError,
  waitUntil,
} from "./services/process.ts";
import { startRedis } from "./services/redis.ts";
import { createRun, type Run } from "./services/run.ts";
import { writeRunningFile } from "./services/runningFile.ts";
import { dataDir, env, loadEnvFile, requireGoodSettings, root, urlOf } from "./services/settings.ts";
import { startFakeOpenAi } from "../test/fakes/openai.ts";

const help = `Starts Reef and everything it stands on, and prints "ready http://127.0.0.1:PORT" when it serves.

  npm start                       Ctrl-C stops everything in order
  npm start -- --logs             the application's log on this terminal instead of <data>/logs/api.log

Environment (or .env; every other variable in .env.example reaches the application):
  PORT, HOST                      where to listen (3000, 127.0.0.1)
  REEF_DATA_DIR                   where everything is kept (.data); one Reef per folder
  REEF_LOGS=1                     the same as --logs
  OPENAI_API_KEY                  the model's key; without it a scripted model answers
  OPENAI_BASE_URL                 another provider that speaks the same protocol
  DATABASE_URL, REDIS_URL         your own Postgres and Redis instead of the ones started here
  OPENCLAW_GATEWAY_URL            your own gateway, with OPENCLAW_GATEWAY_TOKEN and OPENCLAW_GATEWAY_DIR`;

type Settings = { port: number; host: string; dataDir: string; logs: boolean };

process.chdir(root);
if (process.argv.includes("--help") || process.argv.includes("-h")) {
  console.log(help);
  process.exit(0);
}
const run = createRun();
try {
  loadEnvFile();
  await start(run, readSettings(process.argv.slice(2)));
} catch (error) {
  await run.stop(error instanceof StartError ? error.exitCode : 1, explain(error, dataDir()));
}

function readSettings(argv: string[]): Settings {
  const unknown = argv.find((argument) => argument !== "--logs");
  if (unknown !== undefined) throw new StartError(`Unknown option ${unknown}: see npm start -- --help.`);
  requireGoodSettings();
  return {
    port: Number(env("PORT") ?? 3000),
    host: env("HOST") ?? "127.0.0.1",
    dataDir: dataDir(),
    logs: argv.includes("--logs") || env("REEF_LOGS") === "1",
  };
}

/** All at once where nothing waits for another: the gateway takes longest and needs no database. */
async function start(run: Run, settings: Settings): Promise<void> {
  requireFreePort(settings);
  const data = openDataFolder(settings.dataDir);
  const folder = (name: string) => join(data.path, name);
  const model = await startModel(run);
  const gatewayPort = freePort();
  const app: Record<string, string | undefined> = {
    ...process.env,
    ...model,
    NODE_ENV: env("NODE_ENV") ?? "development",
    HOST: settings.host,
    PORT: String(settings.port),
    JWT_SECRET: env("JWT_SECRET") ?? data.secrets.jwtSecret,
    OPENCLAW_GATEWAY_URL: env("OPENCLAW_GATEWAY_URL") ?? `ws://127.0.0.1:${gatewayPort}`,
    OPENCLAW_GATEWAY_TOKEN: env("OPENCLAW_GATEWAY_TOKEN") ?? data.secrets.gatewayToken,
    OPENCLAW_GATEWAY_DIR: resolve(env("OPENCLAW_GATEWAY_DIR") ?? folder("gateways/main")),
  };
  const log = run.say;
  const gateway = env("OPENCLAW_GATEWAY_URL")
    ? null
    : run.waitFor("gateway", keepGateway(run, app, gatewayPort, folder("logs")));
  // Watched from the start: when it fails early nobody waits for it yet.
  gateway?.catch(() => undefined);
  const [databaseUrl, redisUrl] = await Promise.all([
    env("DATABASE_URL") ?? keep(run, "Postgres", startPostgres({ dataDir: folder("postgres"), durable: true, log })),
    env("REDIS_URL") ?? keep(run, "Redis", startRedis({ dataDir: folder("redis"), log })),
  ]);
  const connected = { ...app, DATABASE_URL: databaseUrl, REDIS_URL: redisUrl };
  writeRunningFile(data.path, connected);
  const application = startApplication(run, settings, connected, folder("logs"));
  await Promise.all([gateway, run.waitFor("application", application)]);
  run.ready(urlOf(settings.host, settings.port));
}

function requireFreePort({ host, port }: Settings): void {
  try {
    Bun.listen({ hostname: host, port, socket: { data() {} } }).stop(true);
  } catch (error) {
    const code = error instanceof Error && "code" in error ? String(error.code) : "";
    const reason = code === "EADDRINUSE" ? "is in use by another program" : `on ${host} can't be listened on (${code})`;
    throw new StartError(`Port ${port} ${reason}: stop it, or choose another with PORT=${port + 1} npm start.`);
  }
}

async function startModel(run: Run): Promise<{ OPENAI_API_KEY: string; OPENAI_BASE_URL: string }> {
  const key = env("OPENAI_API_KEY");
  if (key) return { OPENAI_API_KEY: key, OPENAI_BASE_URL: env("OPENAI_BASE_URL") ?? "https://api.openai.com/v1" };
  const model = await startFakeOpenAi();
  run.add("scripted model", { stop: () => model.close(), kill: () => undefined });
  run.say("no OPENAI_API_KEY: a scripted model answers");
  return { OPENAI_API_KEY: "scripted", OPENAI_BASE_URL: model.url };
}

/** A service that everything stands on: when it ends, all ends. Resolves with its URL. */
async function keep(
  run: Run,
  name: string,
  starting: Promise<{ url: string; exited: Promise<number>; stop(): Promise<void>; kill(): void }>,
): Promise<string> {
  const service = await run.waitFor(name, starting);
  run.add(name, service);
  void service.exited.then((code) => run.stop(1, `${name} ended (exit code ${code}): Reef stops.`));
  return service.url;
}

async function startApplication(
  run: Run,
  settings: Settings,
  app: Record<string, string | undefined>,
  logs: string,
): Promise<void> {
  const logFile = join(logs, "api.log");
  rotateLog(logFile);
  const from = existsSync(logFile) ? statSync(logFile).size : 0;
  const child = spawnChild({
    command: [process.execPath, "--no-env-file", "src/main.ts"],
    env: present(app),
    deathSignal: "KILL",
    ...(settings.logs ? {} : { logFile }),
  });
  run.add("application", { stop: () => child.stop("SIGTERM", 12_000), kill: () => child.kill("SIGKILL") });
  if (!settings.logs) run.say(`the application's log: ${logFile}`);
  void child.exited.then((code) => {
    if (code !== 0 && isDiskFull(logs)) return run.stop(1, diskFull(logFile));
    const said = settings.logs ? "" : `\n${lastLines(logFile, 15, from)}`;
    const what =
      code === 78 ? "The application refuses its configuration:" : `The application ended (exit code ${code}).`;
    return run.stop(code === 78 ? 78 : 1, `${what}${said}`);
  });
  const url = `${urlOf(settings.host, settings.port)}/readyz`;
  await waitUntil(
    child,
    Number.POSITIVE_INFINITY,
    async () => (await fetch(url, { signal: AbortSignal.timeout(3_000) })).ok,
    150,
  );
  // It ended: its exit handler above stops everything and says why.
  if (!child.running()) await new Promise(() => undefined);
}
