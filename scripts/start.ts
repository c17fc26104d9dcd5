import { existsSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import { openDataFolder } from "./services/dataFolder.ts";
import { startGateway } from "./services/gateway.ts";
import { startPostgres } from "./services/postgres.ts";
import { explain, freePort, lastLines, rotateLog, spawnChild, StartError, waitUntil } from "./services/process.ts";
import { startRedis } from "./services/redis.ts";
import { createRun, type Run } from "./services/run.ts";
import { writeRunningFile } from "./services/runningFile.ts";
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

const root = resolve(import.meta.dir, "..");

type Settings = { port: number; host: string; dataDir: string; logs: boolean };

process.chdir(root);
if (process.argv.includes("--help") || process.argv.includes("-h")) {
  console.log(help);
  process.exit(0);
}
// Bun is started without its own .env reading: tests and jobs must not see the file. What is set already wins.
if (existsSync(".env")) process.loadEnvFile(".env");
const run = createRun();
let dataDir = ".data";
try {
  const settings = readSettings(process.argv.slice(2));
  dataDir = settings.dataDir;
  await start(run, settings);
} catch (error) {
  await run.stop(error instanceof StartError ? error.exitCode : 1, explain(error, dataDir));
}

function env(name: string): string | undefined {
  return process.env[name]?.trim() || undefined;
}

function readSettings(argv: string[]): Settings {
  const unknown = argv.find((argument) => argument !== "--logs");
  if (unknown !== undefined) throw new StartError(`Unknown option ${unknown}: see npm start -- --help.`);
  const port = Number(env("PORT") ?? 3000);
  if (!Number.isInteger(port) || port < 1 || port > 65535)
    throw new StartError("PORT must be a number from 1 to 65535.");
  if (env("OPENCLAW_GATEWAY_URL") && !(env("OPENCLAW_GATEWAY_TOKEN") && env("OPENCLAW_GATEWAY_DIR"))) {
    throw new StartError("With OPENCLAW_GATEWAY_URL give OPENCLAW_GATEWAY_TOKEN and OPENCLAW_GATEWAY_DIR too.");
  }
  return {
    port,
    host: env("HOST") ?? "127.0.0.1",
    dataDir: resolve(env("REEF_DATA_DIR") ?? ".data"),
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
  run.ready(`http://127.0.0.1:${settings.port}`);
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

/** Parks and starts the gateway; when it ends later, again, with growing pauses. Resolves when it first serves. */
async function keepGateway(
  run: Run,
  app: Record<string, string | undefined>,
  port: number,
  logs: string,
): Promise<void> {
  let pauseMs = 1_000;
  const startOnce = async () => {
    await parkAgents(run, app, join(logs, "jobs.log"));
    const startedAt = performance.now();
    const gateway = await startGateway({
      dir: String(app["OPENCLAW_GATEWAY_DIR"]),
      port,
      token: String(app["OPENCLAW_GATEWAY_TOKEN"]),
      env: { ...withoutOpenClaw(process.env), ...pick(app, ["OPENAI_API_KEY", "OPENAI_BASE_URL"]) },
      log: () => undefined,
    });
    run.add("gateway", gateway);
    void gateway.exited.then((code) => {
      if (performance.now() - startedAt > 60_000) pauseMs = 1_000;
      return restart(`the gateway ended (exit code ${code})`);
    });
  };
  const restart = async (what: string): Promise<void> => {
    if (run.stopping()) return;
    run.say(`${what}: starting it again in ${pauseMs / 1000} s`);
    await Bun.sleep(pauseMs);
    pauseMs = Math.min(pauseMs * 2, 30_000);
    if (run.stopping()) return;
    await startOnce().then(
      () => run.say("the gateway serves again"),
      (error: unknown) => restart(explain(error, logs)),
    );
  };
  await startOnce();
}

/** A personal OpenClaw's variables in this shell are not for our gateway. */
function withoutOpenClaw(source: Record<string, string | undefined>): Record<string, string | undefined> {
  return Object.fromEntries(Object.entries(source).filter(([name]) => !name.startsWith("OPENCLAW_")));
}

function pick(source: Record<string, string | undefined>, names: string[]): Record<string, string | undefined> {
  return Object.fromEntries(names.map((name) => [name, source[name]]));
}

function present(source: Record<string, string | undefined>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(source).filter((entry): entry is [string, string] => entry[1] !== undefined),
  );
}

/** Writes the gateway's configuration with nobody in it and puts sleeping agents' files aside: only before it starts. */
async function parkAgents(run: Run, app: Record<string, string | undefined>, logFile: string): Promise<void> {
  rotateLog(logFile);
  const job = spawnChild({
    command: [process.execPath, "--no-env-file", "src/jobs/parkAgents.ts"],
    env: present(app),
    deathSignal: "KILL",
    logFile,
  });
  const timer = setTimeout(() => job.kill("SIGKILL"), 60_000);
  const code = await job.exited;
  clearTimeout(timer);
  if (code !== 0 && !run.stopping())
    run.say(`parking sleeping agents failed (see ${logFile}): ${lastLines(logFile, 1)}`);
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
    const said = settings.logs ? "" : `\n${lastLines(logFile, 15, from)}`;
    const what =
      code === 78 ? "The application refuses its configuration:" : `The application ended (exit code ${code}).`;
    return run.stop(code === 78 ? 78 : 1, `${what}${said}`);
  });
  const host = settings.host === "0.0.0.0" || settings.host === "::" ? "127.0.0.1" : settings.host;
  const url = `http://${host.includes(":") ? `[${host}]` : host}:${settings.port}/readyz`;
  await waitUntil(
    child,
    Number.POSITIVE_INFINITY,
    async () => (await fetch(url, { signal: AbortSignal.timeout(3_000) })).ok,
    150,
  );
  // It ended: its exit handler above stops everything and says why.
  if (!child.running()) await new Promise(() => undefined);
}
