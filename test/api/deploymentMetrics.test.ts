import { afterAll, beforeAll, expect, test } from "bun:test";
import { createServer } from "../../src/server.ts";
import { ChatHub } from "../../src/services/chatHub.ts";
import { finishJobRun, insertJobRun, listNewestRuns, type JobOutcome } from "../../src/db/jobRuns.ts";
import { upsertAlarm } from "../../src/db/alarms.ts";
import { newId } from "../../src/lib/ids.ts";
import { idle, isAnswer, makeAssistant, makeUser, openChat } from "../factories.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";

let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef()));
afterAll(() => reef.stop());

const scrape = async () => (await fetch(`${reef.url}/metrics`)).text();
const valueOf = (text: string, series: string): number | null => {
  const line = text.split("\n").find((candidate) => candidate.startsWith(`${series} `));
  return line === undefined ? null : Number(line.slice(series.length + 1));
};
const look = async (series: string) => valueOf(await scrape(), series);

async function ran(job: string, outcome: JobOutcome | null, minutesAgo: number): Promise<void> {
  const id = newId();
  await insertJobRun(reef.sql, { id, job, host: "here" });
  if (outcome) await finishJobRun(reef.sql, { id, outcome, summary: "", details: {} });
  await reef.sql`
    update job_runs set started_at = now() - make_interval(mins => ${minutesAgo}, secs => 30),
      finished_at = case when finished_at is not null then now() - make_interval(mins => ${minutesAgo}) end where id = ${id}`;
}

test("jobs: the age of the newest success, the newest duration and outcome; skipped runs say nothing", async () => {
  expect(await scrape()).not.toContain("reef_job_last_outcome{");
  await ran("backup", "ok", 120);
  await ran("backup", "ok", 60);
  await ran("backup", "failed", 10);
  await ran("backup", "skipped", 5);
  await ran("verify-backup", null, 3);
  await ran("check-health", "ok", 1);
  const text = await scrape();
  const seen = (series: string) => valueOf(text, series);
  const age = seen('reef_job_last_success_age_seconds{name="backup"}')!;
  expect(age).toBeGreaterThanOrEqual(3600);
  expect(age).toBeLessThan(3700);
  expect(seen('reef_backup_age_seconds{step="made"}')).toBe(age);
  expect(seen('reef_job_last_duration_seconds{name="backup"}')).toBe(30);
  const outcomes = ["ok", "failed", "running"];
  const outcomeOf = (job: string) =>
    outcomes.map((one) => seen(`reef_job_last_outcome{name="${job}",outcome="${one}"}`));
  expect(outcomeOf("backup")).toEqual([0, 1, 0]);
  expect(outcomeOf("verify-backup")).toEqual([0, 0, 1]);
  expect(outcomeOf("check-health")).toEqual([1, 0, 0]);
  // The doctor says the same.
  expect((await listNewestRuns(reef.sql)).map(({ job, last }) => [job, last.outcome])).toEqual([
    ["backup", "failed"],
    ["check-health", "ok"],
    ["verify-backup", "running"],
  ]);
  // Never verified: no number is no lie.
  expect(seen('reef_backup_age_seconds{step="verified"}')).toBe(null);
  expect(seen('reef_job_last_duration_seconds{name="verify-backup"}')).toBe(null);
  await reef.sql`delete from job_runs where job = 'check-health'`;
  expect(await look('reef_job_last_outcome{name="check-health",outcome="ok"}')).toBe(null);
});

test("gateways: the canary's age and result, stopped placement; absent until it ran", async () => {
  expect(await look('reef_canary_result{gateway="main",result="ok"}')).toBe(null);
  expect(await look('reef_placement_stopped{gateway="main"}')).toBe(0);
  await reef.sql`
    update gateways set canary_result = 'leak', canary_at = now() - interval '1 hour', placement_stopped_reason = 'canary'`;
  const text = await scrape();
  const result = (one: string) => valueOf(text, `reef_canary_result{gateway="main",result="${one}"}`);
  expect([result("ok"), result("leak"), result("failed")]).toEqual([0, 1, 0]);
  expect(Math.round(valueOf(text, 'reef_canary_age_seconds{gateway="main"}')! / 60)).toBe(60);
  expect(valueOf(text, 'reef_placement_stopped{gateway="main"}')).toBe(1);
  await reef.sql`update gateways set canary_result = null, canary_at = null, placement_stopped_reason = null`;
  expect(await look('reef_canary_result{gateway="main",result="leak"}')).toBe(null);
});

test("open alarms by severity", async () => {
  const alarm = { summary: "trouble", host: "here" };
  await upsertAlarm(reef.sql, { key: "one", severity: "critical", ...alarm });
  await upsertAlarm(reef.sql, { key: "two", severity: "warning", ...alarm });
  await upsertAlarm(reef.sql, { key: "two", severity: "warning", ...alarm });
  expect(await look('reef_alarms_open{severity="critical"}')).toBe(1);
  expect(await look('reef_alarms_open{severity="warning"}')).toBe(1);
  await reef.sql`update alarms set resolved_at = now()`;
  expect(await look('reef_alarms_open{severity="critical"}')).toBe(0);
});

test("turns by outcome and code, refusals by kind, failures of the model by reason", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  reef.gateway.setAnswer(async function* (turn) {
    if (turn.text === "format" || turn.text === "auth" || turn.text === "timeout") yield { error: turn.text };
    yield { text: "well" };
  });
  const before = await scrape();
  const chat = await openChat(reef, user.token, assistant.agent_id);
  chat.say("hello");
  await chat.next("the answer", isAnswer);
  for (const [n, reason] of ["format", "auth", "timeout"].entries()) {
    chat.say(reason);
    await until("it has failed", () => chat.frames.filter((frame) => frame.type === "error").length === n + 1);
  }
  await reef.sql`update daily_usage set text_messages = 50 where user_id = ${user.id}`;
  chat.say("too much");
  await chat.next("the refusal", (frame) => frame.code === "RATE_LIMITED");
  const path = `/api/assistants/${assistant.id}/messages`;
  const { status } = await user.call("POST", path, { content: "over HTTP", client_id: crypto.randomUUID() });
  expect(status).toBe(429);
  // Words of the gateway's that are not known make one series, not many.
  for (const word of ["a new word", "another"]) reef.deps.metrics.modelFailed(word);
  const after = await scrape();
  const grown = (series: string) => (valueOf(after, series) ?? 0) - (valueOf(before, series) ?? 0);
  expect(grown('reef_turns_ended_total{outcome="done",code="none"}')).toBe(1);
  expect(grown('reef_turns_ended_total{outcome="failed",code="turn_failed"}')).toBe(1);
  expect(grown('reef_turns_ended_total{outcome="failed",code="assistant_unavailable"}')).toBe(2);
  expect(grown('reef_quota_refusals_total{kind="text_messages"}')).toBe(2);
  const reasons = ["format", "auth", "timeout", "other"];
  expect(reasons.map((reason) => grown(`reef_model_failures_total{reason="${reason}"}`))).toEqual([1, 1, 1, 2]);
});

test("waking is timed, the working set is counted, what lags is shown for as long as it does", async () => {
  const before = await scrape();
  const user = await makeUser(reef);
  const { id } = await makeAssistant(user);
  const untilAwake = () =>
    until(
      "it is awake",
      async () => (await reef.sql`select 1 from assistants where id = ${id} and state = 'awake'`).length > 0,
    );
  await untilAwake();
  const awake = await until("its wake is counted", async () => {
    const text = await scrape();
    return valueOf(text, "reef_wake_seconds_count")! > (valueOf(before, "reef_wake_seconds_count") ?? 0) ? text : null;
  });
  expect(valueOf(awake, "reef_working_set_used")).toBe((valueOf(before, "reef_working_set_used") ?? 0) + 1);
  expect(valueOf(awake, "reef_generation_lag_assistants")).toBe(0);
  expect(valueOf(awake, "reef_generation_lag_oldest_seconds")).toBe(0);
  await reef.sql`update assistants set generation = generation + 1 where id = ${id}`;
  expect(await look("reef_generation_lag_assistants")).toBe(1);
  await until("its age grows", async () => (await look("reef_generation_lag_oldest_seconds"))! > 0);
  await reef.sql`update assistants set applied_generation = generation where id = ${id}`;
  expect(await look("reef_generation_lag_oldest_seconds")).toBe(0);
});

test("a part that can't be looked at in time is absent, and the others are there", async () => {
  const { app } = createServer(reef.deps, new ChatHub(reef.deps), idle, () => false);
  const ask = async () => (await app.fetch(new Request("http://reef/metrics"), { ip: "127.0.0.1" })).text();
  await ran("run-canary", "ok", 1);
  expect(valueOf(await ask(), 'reef_job_last_outcome{name="run-canary",outcome="ok"}')).toBe(1);
  const held = Promise.withResolvers<void>();
  const locked = Promise.withResolvers<void>();
  const holder = reef.sql.begin(async (tx) => {
    await tx`lock table job_runs in access exclusive mode`;
    locked.resolve();
    await held.promise;
  });
  await locked.promise;
  const text = await ask();
  held.resolve();
  await holder;
  expect(text).not.toContain("reef_job_last_outcome{");
  expect(valueOf(text, "reef_database_up")).toBe(1);
  expect(valueOf(text, 'reef_alarms_open{severity="critical"}')).toBe(0);
  expect(valueOf(await ask(), 'reef_job_last_outcome{name="run-canary",outcome="ok"}')).toBe(1);
});
