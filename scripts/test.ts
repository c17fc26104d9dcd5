import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism, tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { startPostgres, type Postgres } from "./services/postgres.ts";
import { explain, spawnChild, type Child } from "./services/process.ts";
import { startRedis, type Redis } from "./services/redis.ts";

const help = `Runs the tests against a Postgres and a Redis of their own, which are gone afterwards. All of them go in two halves side by
side, each with its own; what the second one says comes when both have ended.

  npm test                              everything in test/, the suites with the real gateway included
  npm test -- test/api                  only the files whose path contains test/api
  npm test -- -t "name"                 only the tests of that name; every other option of "bun test" works too

The last line is "N passed, N failed", with ", N skipped" when some were. The exit code is that of "bun test".`;

const prefix = "reef-test-";

process.chdir(resolve(import.meta.dir, ".."));
const args = process.argv.slice(2);
if (args.includes("--help") || args.includes("-h")) {
  console.log(help);
  process.exit(0);
}
const say = (line: string) => console.error(`reef: ${line}`);
/** Halves that share nothing; tests wait more than they compute. */
const HALVES = args.length > 0 || availableParallelism() < 2 ? 1 : 2;
type Running = { postgres?: Postgres; redis?: Redis; tests?: Child };
const running: Running[] = [];
let signalled = 0;
for (const [signal, number] of [
  ["SIGINT", 2],
  ["SIGTERM", 15],
  ["SIGHUP", 1],
] as const) {
  process.on(signal, () => {
    const begun = running.filter(({ tests }) => tests !== undefined);
    if (signalled === 0 && begun.length < HALVES) void finish(128 + number);
    signalled ||= 128 + number;
    for (const { tests } of begun) tests?.kill("SIGTERM");
  });
}

removeLeftFolders();
const folder = mkdtempSync(join(tmpdir(), `${prefix}${process.pid}-`));
try {
  process.exitCode = await testAll();
} catch (error) {
  say(explain(error, folder));
  process.exitCode = 1;
}
await finish(signalled || Number(process.exitCode));

type Counts = { code: number; passed: number; failed: number; skipped: number };

async function testAll(): Promise<number> {
  // As root Postgres runs as another user, who must get through.
  chmodSync(folder, 0o711);
  // One after the other: the first may have to fetch Redis.
  for (let half = 1; half <= HALVES; half++) await startServers(half);
  const halves = await Promise.all(running.map((own, i) => testHalf(own, i + 1)));
  if (HALVES > 1) await Bun.write(Bun.stdout, Bun.file(outputOf(2)));
  const sum = (count: keyof Counts) => halves.reduce((total, half) => total + half[count], 0);
  console.log(
    `${sum("passed")} passed, ${sum("failed")} failed${sum("skipped") > 0 ? `, ${sum("skipped")} skipped` : ""}`,
  );
  return Math.max(...halves.map(({ code }) => code));
}

function outputOf(half: number): string {
  return join(folder, `output-${half}`);
}

function placeOf(half: number): string {
  return join(folder, String(half));
}

async function startServers(half: number): Promise<void> {
  const own: Running = {};
  running.push(own);
  const place = placeOf(half);
  mkdirSync(place, { mode: 0o711 });
  await Promise.all([
    startPostgres({ dataDir: join(place, "postgres"), durable: false, log: () => undefined }).then(
      (started) => (own.postgres = started),
    ),
    startRedis({ dataDir: join(place, "redis"), log: say }).then((started) => (own.redis = started)),
  ]);
}

async function testHalf(own: Running, half: number): Promise<Counts> {
  const report = join(placeOf(half), "report.xml");
  own.tests = spawnChild({
    command: [
      process.execPath,
      "--no-env-file",
      "test",
      // A test that hangs, not one on a busy machine: Bun's own five seconds are soon over there.
      "--timeout=60000",
      "--reporter=junit",
      `--reporter-outfile=${report}`,
      ...(HALVES > 1 ? [`--shard=${half}/${HALVES}`] : []),
      ...(args.length > 0 ? args : ["./test"]),
    ],
    env: {
      ...(process.env as Record<string, string>),
      TEST_DATABASE_URL: own.postgres!.url,
      TEST_REDIS_URL: own.redis!.url,
    },
    deathSignal: "KILL",
    detached: false,
    ...(half > 1 ? { logFile: outputOf(half) } : {}),
  });
  return count(report, await own.tests.exited);
}

/** The counts of the report. A run that failed without a failed test (it broke off, or a file did not load) counts as one. */
function count(report: string, code: number): Counts {
  const xml = existsSync(report) ? readFileSync(report, "utf8") : "";
  const head = /<testsuites [^>]*>/.exec(xml)?.[0] ?? "";
  const read = (name: string) => Number(new RegExp(` ${name}="(\\d+)"`).exec(head)?.[1] ?? 0);
  const skipped = read("skipped");
  const failed = read("failures") + read("errors");
  const passed = read("tests") - skipped - failed;
  return { code, passed, failed: code !== 0 && failed === 0 ? 1 : failed, skipped };
}

async function finish(code: number): Promise<never> {
  await Promise.all(running.map(({ redis, postgres }) => Promise.all([redis?.stop(), postgres?.stop()])));
  try {
    rmSync(folder, { recursive: true, force: true });
  } catch {
    say(`${folder} is still being written to; the next run removes it`);
  }
  process.exit(code);
}

/** Folders of runs that were killed: their names tell the process, which is no more. */
function removeLeftFolders(): void {
  for (const name of readdirSync(tmpdir()).filter((entry) => entry.startsWith(prefix))) {
    const pid = Number(name.slice(prefix.length).split("-")[0]);
    if (Number.isInteger(pid) && existsSync(`/proc/${pid}`)) continue;
    try {
      rmSync(join(tmpdir(), name), { recursive: true, force: true });
    } catch {
      continue; // somebody else's
    }
  }
}
