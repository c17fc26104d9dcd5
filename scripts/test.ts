import { chmodSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { startPostgres, type Postgres } from "./services/postgres.ts";
import { explain, spawnChild, type Child } from "./services/process.ts";
import { startRedis, type Redis } from "./services/redis.ts";

const help = `Runs the tests against a Postgres and a Redis of their own, which are gone afterwards.

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
const running: { postgres?: Postgres; redis?: Redis; tests?: Child } = {};
let signalled = 0;
for (const [signal, number] of [
  ["SIGINT", 2],
  ["SIGTERM", 15],
  ["SIGHUP", 1],
] as const) {
  process.on(signal, () => {
    if (signalled === 0 && running.tests === undefined) void finish(128 + number);
    signalled ||= 128 + number;
    running.tests?.kill("SIGTERM");
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

async function testAll(): Promise<number> {
  // As root Postgres runs as another user, who must get through.
  chmodSync(folder, 0o711);
  const [postgres, redis] = await Promise.all([
    startPostgres({ dataDir: join(folder, "postgres"), durable: false, log: () => undefined }).then(
      (started) => (running.postgres = started),
    ),
    startRedis({ dataDir: join(folder, "redis"), log: say }).then((started) => (running.redis = started)),
  ]);
  const report = join(folder, "report.xml");
  running.tests = spawnChild({
    command: [
      process.execPath,
      "--no-env-file",
      "test",
      // A test that hangs, not one on a busy machine: Bun's own five seconds are soon over there.
      "--timeout=60000",
      "--reporter=junit",
      `--reporter-outfile=${report}`,
      ...(args.length > 0 ? args : ["./test"]),
    ],
    env: { ...(process.env as Record<string, string>), TEST_DATABASE_URL: postgres.url, TEST_REDIS_URL: redis.url },
    deathSignal: "KILL",
    detached: false,
  });
  const code = await running.tests.exited;
  console.log(summary(report, code));
  return code;
}

/** The counts of the report. A run that failed without a failed test (it broke off, or a file did not load) counts as one. */
function summary(report: string, code: number): string {
  const xml = existsSync(report) ? readFileSync(report, "utf8") : "";
  const head = /<testsuites [^>]*>/.exec(xml)?.[0] ?? "";
  const count = (name: string) => Number(new RegExp(` ${name}="(\\d+)"`).exec(head)?.[1] ?? 0);
  const skipped = count("skipped");
  const failed = count("failures") + count("errors");
  const passed = count("tests") - skipped - failed;
  const shown = code !== 0 && failed === 0 ? 1 : failed;
  return `${passed} passed, ${shown} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`;
}

async function finish(code: number): Promise<never> {
  await Promise.all([running.redis?.stop(), running.postgres?.stop()]);
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
