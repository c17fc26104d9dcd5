import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { startPostgres } from "../scripts/services/postgres.ts";
import { explain, StartError } from "../scripts/services/process.ts";
import { startRedis } from "../scripts/services/redis.ts";
import type { Bench, Services } from "./bench.ts";
import { files } from "./files.ts";
import { hosts } from "./hosts.ts";
import { history } from "./history.ts";
import { http } from "./http.ts";
import { idle } from "./idle.ts";
import { logins } from "./logins.ts";
import { overhead } from "./overhead.ts";
import { relay } from "./relay.ts";
import { voice } from "./voice.ts";

const benches: Record<string, Bench> = { relay, idle, overhead, http, history, logins, voice, files, hosts };

process.chdir(resolve(import.meta.dir, ".."));
const [name = "--help", ...rest] = process.argv.slice(2);
const bench = benches[name];
const ends: (() => unknown)[] = [];
let phase = "starting Postgres and Redis";
let saidAt = 0;
let stopping: Promise<never> | null = null;

if (!bench || rest.includes("--help") || rest.includes("-h")) {
  console.log(bench ? helpOf(name, bench) : helpOfAll());
  process.exit(bench || name === "--help" || name === "-h" ? 0 : 2);
}
if (bench.ownNetwork && process.env["REEF_OWN_NETWORK"] === undefined) {
  if (process.getuid?.() !== 0) {
    console.error(`bench: ${name} makes networks of its own, which only root may; start it as root.`);
    process.exit(2);
  }
  const again = [
    "sh",
    "-c",
    'ip link set lo up && exec "$@"',
    "sh",
    process.execPath,
    "--no-env-file",
    import.meta.path,
  ];
  const child = Bun.spawn(["setpriv", "--pdeathsig=TERM", "unshare", "--net", ...again, name, ...rest], {
    env: { ...process.env, REEF_OWN_NETWORK: "1" },
    stdio: ["ignore", "inherit", "inherit"],
  });
  process.exit(await child.exited);
}
const ticker = setInterval(() => {
  if (performance.now() - saidAt > 2_000) progress(phase);
}, 500);
for (const [signal, number] of [
  ["SIGINT", 2],
  ["SIGTERM", 15],
  ["SIGHUP", 1],
] as const) {
  process.on(signal, () => void finish(128 + number, "stopping"));
}

const folder = mkdtempSync(join(tmpdir(), "reef-bench-"));
try {
  const options = readOptions(bench, rest);
  const services = await startServices();
  await bench.run(services, options);
  await finish(0);
} catch (error) {
  if (!(error instanceof StartError)) console.error(error);
  await finish(error instanceof StartError ? error.exitCode : 1, explain(error, folder));
}

async function startServices(): Promise<Services> {
  // As root the database runs as another user, who must get through.
  chmodSync(folder, 0o711);
  const postgres = await startPostgres({ dataDir: join(folder, "postgres"), durable: true, log: say });
  ends.push(() => postgres.stop());
  const redis = await startRedis({ dataDir: join(folder, "redis"), log: say });
  ends.push(() => redis.stop());
  return {
    folder,
    databaseUrl: postgres.url,
    redisUrl: redis.url,
    postgresPid: postgres.pid,
    redisPid: redis.pid,
    say,
    onEnd: (stop) => void ends.push(stop),
    keep(what, child) {
      let wanted = false;
      const stop = () => {
        wanted = true;
        return child.running() ? child.stop("SIGTERM", 5_000) : Promise.resolve();
      };
      ends.push(stop);
      void child.exited.then((code) => (wanted ? undefined : finish(1, `${what} ended early (exit code ${code}).`)));
      return stop;
    },
  };
}

/** What is being done now; said again while it takes longer than two seconds, and left out when the last was just said. */
function say(line: string): void {
  phase = line;
  if (performance.now() - saidAt > 1_000) progress(line);
}

function progress(line: string): void {
  saidAt = performance.now();
  console.error(`bench: ${line} (${Math.round(performance.now() / 1000)} s)`);
}

/** Stops everything in reverse order; the first call decides. */
function finish(code: number, why?: string): Promise<never> {
  stopping ??= (async () => {
    clearInterval(ticker);
    if (why) console.error(`bench: ${why}`);
    for (const end of ends.toReversed()) await Promise.resolve(end()).catch((error: unknown) => console.error(error));
    rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
    process.exit(code);
  })();
  return stopping;
}

function readOptions(of: Bench, args: string[]): Record<string, number> {
  const options = Object.fromEntries(Object.entries(of.options).map(([key, { value }]) => [key, value]));
  for (let i = 0; i < args.length; i += 2) {
    const key = args[i]!.replace(/^--/, "");
    const value = Number(args[i + 1]);
    if (!(key in options) || !Number.isInteger(value) || value < 0)
      throw new StartError(`${args[i]} ${args[i + 1] ?? ""}: see npm run bench -- ${name} --help.`, 2);
    options[key] = value;
  }
  return options;
}

function helpOfAll(): string {
  const lines = Object.entries(benches).map(([key, { summary }]) => `  npm run bench -- ${key.padEnd(10)} ${summary}`);
  return `Measures Reef beside something else on this machine. Starts what it needs, prints figures, stops it all.\n\n${lines.join("\n")}\n\nEach takes its sizes as options: npm run bench -- relay --help. The last figures: bench/README.md.`;
}

function helpOf(key: string, { summary, options }: Bench): string {
  const lines = Object.entries(options).map(
    ([option, { value, help }]) => `  --${option.padEnd(12)} ${help} (${value})`,
  );
  return `npm run bench -- ${key}: ${summary}\n\n${lines.join("\n")}`;
}
