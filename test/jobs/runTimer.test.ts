import { afterAll, beforeAll, beforeEach, expect, test } from "bun:test";
import { resolve } from "node:path";
import { listNewestRuns } from "../../src/db/jobRuns.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";
import { runProgram, start, startDuty, type Duty } from "./program.ts";

let duty: Duty;
let reef: TestReef;
beforeAll(async () => {
  duty = startDuty();
  reef = await startTestReef();
  // The processes tell nobody here: who is told is told by the jobs.
  reef.env["ALARM_WEBHOOK_URL"] = duty.url;
});
afterAll(async () => {
  await reef.stop();
  await duty.stop();
});
beforeEach(() => void duty.posts.splice(0));

const runTimer = resolve(import.meta.dir, "../../src/jobs/runTimer.ts");
/** A timer's program whose job is called `name` and does `work`. */
const job = (name: string, work: string, limitMs = 60_000) => [
  "-e",
  `import { runTimer } from ${JSON.stringify(runTimer)};
  await runTimer({ name: ${JSON.stringify(name)}, scope: "deployment", limitMs: ${limitMs}, work: async (deps, lock) => { ${work} } }, "the help");`,
];
const run = (name: string, work: string, env = reef.env) => runProgram(env, ...job(name, work));
const rowsOf = (name: string) =>
  reef.sql`select outcome, summary, details, finished_at is not null as finished from job_runs where job = ${name} order by started_at`;

const well = `return { ok: true, summary: "2 things done", details: { things: 2 } };`;
const badly = `return { ok: false, summary: "1 thing is broken" };`;

test("a job that goes well: its row, its line, 0, and nobody is told", async () => {
  expect(await run("goes-well", well)).toMatchObject({ code: 0, out: "goes-well: ok: 2 things done" });
  expect(await rowsOf("goes-well")).toEqual([
    { outcome: "ok", summary: "2 things done", details: { things: 2 }, finished: true },
  ] as never);
  expect(duty.posts).toEqual([]);
});

test("a job that takes longer than it may has lost its lock, and failed", async () => {
  const slow = job("too-long", `await new Promise((resolve) => setTimeout(resolve, 2500)); ${well}`, 1_200);
  const { code, out } = await runProgram(reef.env, ...slow);
  expect([code, out]).toEqual([
    1,
    "too-long: failed: it lost its lock: it may take 0.02 min, and Postgres must answer",
  ]);
  expect(await rowsOf("too-long")).toEqual([
    expect.objectContaining({ outcome: "failed", finished: true }) as never,
  ] as never);
  expect(duty.posts).toEqual([expect.objectContaining({ status: "firing", key: "job:too-long" })]);
});

test("a job that fails: 1, one alarm however often, and its end when it goes well again", async () => {
  expect(await run("fails", badly)).toMatchObject({ code: 1, out: "fails: failed: 1 thing is broken" });
  expect(await run("fails", `throw new Error("the disk is full");`)).toMatchObject({
    code: 1,
    out: "fails: failed: the disk is full",
  });
  expect(duty.posts).toEqual([
    expect.objectContaining({
      status: "firing",
      key: "job:fails",
      severity: "warning",
      text: "[Reef warning] fails failed: 1 thing is broken",
    }),
  ]);
  const [alarm] = await reef.sql`select count::int, resolved_at from alarms where key = 'job:fails'`;
  expect(alarm).toEqual({ count: 2, resolvedAt: null });
  expect((await run("fails", well)).code).toBe(0);
  expect((await run("fails", well)).code).toBe(0);
  expect(duty.posts.map(({ status }) => status)).toEqual(["firing", "resolved"]);
  expect((await rowsOf("fails")).map(({ outcome }) => outcome)).toEqual(["failed", "failed", "ok", "ok"]);
  const newest = (await listNewestRuns(reef.sql)).find((each) => each.job === "fails");
  expect(newest).toMatchObject({ last: { outcome: "ok" }, lastOkAt: expect.any(Date) });
});

test("what Postgres or a file system says may quote somebody: only its name and code leave the log", async () => {
  duty.posts.length = 0;
  const quotes = "await deps.sql`select ${'planted words'}::text::uuid`; return { ok: true, summary: '' };";
  expect(await run("quotes", quotes)).toMatchObject({
    code: 1,
    out: "quotes: failed: PostgresError 22P02 (the log says more)",
  });
  const opens = `await (await import("node:fs/promises")).readFile("/planted words"); return { ok: true, summary: "" };`;
  expect(await run("opens", opens)).toMatchObject({ code: 1, out: expect.stringContaining("ENOENT") });
  const rows = [...(await rowsOf("quotes")), ...(await rowsOf("opens"))];
  expect(rows).toHaveLength(2);
  expect(duty.posts).toHaveLength(2);
  expect(JSON.stringify([rows, duty.posts])).not.toContain("planted words");
});

/** Records that it is at work, and works until somebody says enough. */
const slow = `
  await deps.sql\`create table if not exists enough (job text)\`;
  while (!(await deps.sql\`select from enough\`).length) await new Promise((resolve) => setTimeout(resolve, 20));
  return { ok: true, summary: "enough" };`;
const isRunning = (name: string) =>
  until(`${name} runs`, async () => (await rowsOf(name).catch(() => [])).some(({ outcome }) => outcome === "running"));

test("a second one at once is skipped: 0, no row, no alarm", async () => {
  const first = start(reef.env, job("twice", slow));
  await isRunning("twice");
  expect(await run("twice", well)).toMatchObject({ code: 0, out: "twice: skipped: it is at work already" });
  // Another job is not held up.
  expect(await run("beside", well)).toMatchObject({ code: 0 });
  await reef.sql`create table if not exists enough (job text)`;
  await reef.sql`insert into enough values ('twice')`;
  expect(await first.ended).toMatchObject({ code: 0, out: "twice: ok: enough" });
  expect((await rowsOf("twice")).map(({ outcome }) => outcome)).toEqual(["ok"]);
  await reef.sql`drop table enough`;
});

test("one that is killed leaves a row that says so, and the next one works", async () => {
  const killed = start(reef.env, job("killed", slow));
  await isRunning("killed");
  killed.child.kill("SIGKILL");
  expect((await killed.ended).code).not.toBe(0);
  await until("its lock is free", async () => (await run("killed", well)).out === "killed: ok: 2 things done");
  expect((await rowsOf("killed")).map(({ outcome, finished }) => [outcome, finished])).toEqual([
    ["running", false],
    ["ok", true],
  ]);
  await reef.sql`drop table if exists enough`;
});

test("without a database 75, with a bad configuration 78 and no value in its words, with --help 0", async () => {
  const away = await run("away", well, { ...reef.env, DATABASE_URL: "postgres://reef:hush@127.0.0.1:1/reef" });
  expect([away.code, away.out]).toEqual([75, ""]);
  expect(away.said).toContain("away: failed: ");
  expect(away.said).not.toContain("hush");
  const bad = await run("bad", well, { ...reef.env, JWT_SECRET: "tooshort", PORT: "none" });
  expect([bad.code, bad.out]).toEqual([78, ""]);
  expect(bad.said).toContain("JWT_SECRET");
  expect(bad.said).toContain("PORT");
  expect(bad.said).not.toContain("tooshort");
  expect(await runProgram({}, ...job("help", well), "--", "--help")).toMatchObject({ code: 0, out: "the help" });
});
