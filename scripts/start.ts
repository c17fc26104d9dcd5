import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { keepApplication } from "./services/application.ts";
import { announceMails } from "./services/mailFolder.ts";
import { openDataFolder } from "./services/dataFolder.ts";
import { keepGateway } from "./services/gatewayKeeper.ts";
import { startPlayShop, stockPlayShop, type PlayShop } from "./services/playShop.ts";
import { startPostgres } from "./services/postgres.ts";
import { explain, freePort, StartError } from "./services/process.ts";
import { startRedis } from "./services/redis.ts";
import { createRun, type Run } from "./services/run.ts";
import { writeRunningFile } from "./services/runningFile.ts";
import { dataDir, env, loadEnvFile, requireGoodSettings, root, urlOf } from "./services/settings.ts";
import { startFakeOpenAi } from "../test/fakes/openai.ts";

const help = `Starts Reef and everything it stands on, and prints "ready http://127.0.0.1:PORT" when it serves.

  npm start                       Ctrl-C stops everything in order
  npm start -- --logs             the application's log on this terminal instead of <data>/logs/api.log
  npm start -- --processes 2      so many processes of the application, all on one port; SIGUSR2 to the launcher
                                  replaces them one after the other, and nobody is refused meanwhile

Environment (or .env; every other variable in .env.example reaches the application):
  PORT, HOST                      where to listen (3000, 127.0.0.1)
  REEF_DATA_DIR                   where everything is kept (.data); one Reef per folder
  REEF_LOGS=1                     the same as --logs
  OPENAI_API_KEY                  the provider's key, for answers and voice; without it a scripted one answers and speaks
  STRIPE_SECRET_KEY               what people pay goes to this account; without it a play shop takes play money
  OPENAI_BASE_URL                 another provider that speaks the same protocol
  DATABASE_URL, REDIS_URL         your own Postgres and Redis instead of the ones started here
  OPENCLAW_GATEWAY_URL            your own gateway, with OPENCLAW_GATEWAY_TOKEN and OPENCLAW_GATEWAY_DIR`;

type Settings = { port: number; host: string; dataDir: string; logs: boolean; processes: number };

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
  const { logs, processes } = readOptions(argv);
  requireGoodSettings();
  return {
    port: Number(env("PORT") ?? 3000),
    host: env("HOST") ?? "127.0.0.1",
    dataDir: dataDir(),
    logs: logs || env("REEF_LOGS") === "1",
    processes,
  };
}

function readOptions(argv: string[]): { logs: boolean; processes: number } {
  try {
    const options = { logs: { type: "boolean" }, processes: { type: "string" } } as const;
    const { values } = parseArgs({ args: argv, options });
    const processes = Number(values.processes ?? 1);
    if (!Number.isInteger(processes) || processes < 1 || processes > 16)
      throw new StartError("--processes takes a whole number from 1 to 16.");
    return { logs: values.logs ?? false, processes };
  } catch (error) {
    if (error instanceof StartError) throw error;
    throw new StartError(`${error instanceof Error ? error.message : String(error)}. See npm start -- --help.`);
  }
}

/** All at once where nothing waits for another: the gateway takes longest and needs no database. */
async function start(run: Run, settings: Settings): Promise<void> {
  requireFreePort(settings);
  const data = openDataFolder(settings.dataDir);
  const folder = (name: string) => join(data.path, name);
  const model = await startModel(run);
  const gatewayPort = freePort();
  const url = urlOf(settings.host, settings.port);
  const nodeEnv = env("NODE_ENV") ?? "development";
  const shop = await startShop(run, { nodeEnv, file: folder("playShop.json"), url });
  const app: Record<string, string | undefined> = {
    ...process.env,
    ...model,
    ...shop?.env,
    NODE_ENV: nodeEnv,
    APP_URL: env("APP_URL") ?? url,
    HOST: settings.host,
    PORT: String(settings.port),
    JWT_SECRET: env("JWT_SECRET") ?? data.secrets.jwtSecret,
    OPENCLAW_GATEWAY_URL: env("OPENCLAW_GATEWAY_URL") ?? `ws://127.0.0.1:${gatewayPort}`,
    OPENCLAW_GATEWAY_TOKEN: env("OPENCLAW_GATEWAY_TOKEN") ?? data.secrets.gatewayToken,
    OPENCLAW_GATEWAY_DIR: resolve(env("OPENCLAW_GATEWAY_DIR") ?? folder("gateways/main")),
  };
  const mailDir = chooseMailFolder(run, app, folder("mail"));
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
  const connected = { ...app, ...mailDir, DATABASE_URL: databaseUrl, REDIS_URL: redisUrl };
  writeRunningFile(data.path, connected, shop?.env);
  const application = keepApplication(run, { ...settings, env: connected, folder: folder("logs") });
  process.on("SIGUSR2", () => {
    if (settings.processes === 1) run.say("only several processes can be replaced: npm start -- --processes 2");
    else void application.then((kept) => kept.replaceAll());
  });
  await Promise.all([gateway, run.waitFor("application", application)]);
  if (shop) await run.waitFor("play shop", stockPlayShop(connected, join(folder("logs"), "jobs.log"), run.say));
  run.ready(url);
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
  run.say("no OPENAI_API_KEY: a scripted model answers, hears and speaks");
  return { OPENAI_API_KEY: "scripted", OPENAI_BASE_URL: model.url };
}

/** Without Stripe's key people pay with play money; never in production, where nothing is sold then. */
async function startShop(run: Run, options: { nodeEnv: string; file: string; url: string }): Promise<PlayShop | null> {
  if (env("STRIPE_SECRET_KEY")) return null;
  if (options.nodeEnv === "production") {
    run.say("no STRIPE_SECRET_KEY: nothing is sold");
    return null;
  }
  const shop = await startPlayShop({ file: options.file, deliverTo: `${options.url}/api/webhooks/stripe` });
  run.add("play shop", { stop: () => shop.stop(), kill: () => undefined });
  run.say(`no STRIPE_SECRET_KEY: a play shop takes play money at ${shop.url}`);
  return shop;
}

/** Without a mail server, mails are files here; never in production, where they wait for one. */
function chooseMailFolder(run: Run, app: Record<string, string | undefined>, folder: string): { MAIL_DIR?: string } {
  const given = env("MAIL_DIR");
  if (env("SMTP_URL") || (!given && app["NODE_ENV"] !== "development")) return {};
  const dir = resolve(given ?? folder);
  run.say(`no SMTP_URL: mails are files in ${dir}`);
  announceMails(dir, run.say);
  return { MAIL_DIR: dir };
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
