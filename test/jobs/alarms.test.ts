import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { endAlarm, raiseAlarm, renderUnitAlarm, tellAlarms } from "../../src/services/alarms.ts";
import { newId } from "../../src/lib/ids.ts";
import { startFakeSmtp, type FakeSmtp } from "../fakes/smtp.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";
import { runProgram, startDuty, type Duty } from "./program.ts";

let duty: Duty;
let smtp: FakeSmtp;
let reef: TestReef;
beforeAll(async () => {
  duty = startDuty();
  smtp = await startFakeSmtp();
  reef = await startTestReef({
    ALARM_WEBHOOK_URL: duty.url,
    ALARM_EMAIL: "duty@example.org",
    SMTP_URL: smtp.url,
    MAIL_FROM: "Reef <reef@example.org>",
    ALARM_REPEAT_MS: "3600000",
  });
});
afterAll(async () => {
  await reef.stop();
  await smtp.close();
  await duty.stop();
});
beforeEach(async () => {
  duty.answer(200);
  smtp.behave("take");
  await reef.sql`delete from alarms`;
  duty.posts.splice(0);
  smtp.mails.splice(0);
});

const told = () =>
  duty.posts.map(({ status, key, severity }) => `${String(status)} ${String(key)} ${String(severity)}`);
const diskFull = { key: "disk", severity: "warning" as const, summary: "the disk is 91 % full <b>&" };

describe("an alarm", () => {
  test("is told at once by webhook and mail, once while it lasts, and once when it is over", async () => {
    for (let n = 0; n < 3; n++) await raiseAlarm(reef.deps, diskFull);
    expect(told()).toEqual(["firing disk warning"]);
    expect(duty.posts[0]).toMatchObject({ text: "[Reef warning] the disk is 91 % full <b>&", count: 1 });
    const mail = smtp.to("duty@example.org");
    expect(mail?.subject).toBe("[Reef warning] the disk is 91 % full <b>&");
    expect(mail?.text).toContain("Key: disk");
    expect(mail?.html).toContain("&lt;b&gt;&amp;");
    await endAlarm(reef.deps, "disk");
    await endAlarm(reef.deps, "disk");
    await endAlarm(reef.deps, "never raised");
    expect(told()).toEqual(["firing disk warning", "resolved disk warning"]);
    expect(smtp.mails.map(({ subject }) => subject.slice(0, 15))).toEqual(["[Reef warning] ", "[Reef resolved]"]);
    const [row] = await reef.sql`select count::int, resolution_sent_at is not null as told from alarms`;
    expect(row).toEqual({ count: 3, told: true });
  });

  test("begins anew when it comes back, and is told again while it lasts and when it gets worse", async () => {
    await raiseAlarm(reef.deps, diskFull);
    await endAlarm(reef.deps, "disk");
    await raiseAlarm(reef.deps, diskFull);
    expect(told()).toEqual(["firing disk warning", "resolved disk warning", "firing disk warning"]);
    expect(duty.posts.at(-1)).toMatchObject({ count: 1 });
    await reef.sql`update alarms set sent_at = now() - interval '59 minutes'`;
    await tellAlarms(reef.deps);
    expect(duty.posts).toHaveLength(3);
    await reef.sql`update alarms set sent_at = now() - interval '61 minutes'`;
    await tellAlarms(reef.deps);
    await tellAlarms(reef.deps);
    expect(duty.posts).toHaveLength(4);
    await raiseAlarm(reef.deps, { ...diskFull, severity: "critical" });
    expect(told().at(-1)).toBe("firing disk critical");
    expect(duty.posts).toHaveLength(5);
  });

  test("that got worse while it was being told is told again", async () => {
    const { alarmSender } = reef.deps;
    const worse = { ...diskFull, severity: "critical" as const };
    let sent = 0;
    const send: typeof alarmSender.send = async (message) => {
      await alarmSender.send(message);
      if (sent++ === 0) await raiseAlarm({ ...reef.deps, alarmSender: { isConfigured: false, send } }, worse);
    };
    await raiseAlarm({ ...reef.deps, alarmSender: { isConfigured: true, send } }, diskFull);
    await tellAlarms(reef.deps);
    expect(told()).toEqual(["firing disk warning", "firing disk critical"]);
  });

  for (const [way, refuse] of [
    ["the webhook answers 500", () => duty.answer(500)],
    ["the mail server refuses", () => smtp.behave("later")],
  ] as const) {
    test(`is told again soon while ${way}, but not at every look`, async () => {
      refuse();
      await raiseAlarm(reef.deps, diskFull);
      await tellAlarms(reef.deps);
      expect([told(), smtp.mails.length]).toEqual([["firing disk warning"], way.startsWith("the mail") ? 0 : 1]);
      const unsent = async () => (await reef.sql`select 1 from alarms where sent_at is null`).length;
      await reef.sql`update alarms set sent_at = sent_at - interval '16 minutes'`;
      duty.answer(200);
      smtp.behave("take");
      duty.posts.splice(0);
      smtp.mails.splice(0);
      await tellAlarms(reef.deps);
      expect([told(), smtp.mails.length, await unsent()]).toEqual([["firing disk warning"], 1, 0]);
    });
  }

  test("stays untold while no way takes it, and is told later", async () => {
    duty.answer(500);
    smtp.behave("later");
    await raiseAlarm(reef.deps, diskFull);
    duty.answer(200);
    await tellAlarms(reef.deps);
    expect(told()).toEqual(["firing disk warning", "firing disk warning"]);
  });

  test("is told once, however many are raised at the same time", async () => {
    const keys = ["a", "b", "c", "d", "e", "f"];
    await Promise.all(keys.map((key) => raiseAlarm(reef.deps, { ...diskFull, key })));
    expect(told().toSorted()).toEqual(keys.map((key) => `firing ${key} warning`));
  });

  test("that was over before anybody could be told is nobody's news; an end that could not be told is told later", async () => {
    duty.answer(500);
    smtp.behave("later");
    await raiseAlarm(reef.deps, diskFull);
    await endAlarm(reef.deps, "disk");
    duty.answer(200);
    duty.posts.splice(0);
    await tellAlarms(reef.deps);
    expect(told()).toEqual([]);
    await raiseAlarm(reef.deps, diskFull);
    duty.answer(500);
    await endAlarm(reef.deps, "disk");
    duty.answer(200);
    await tellAlarms(reef.deps);
    await tellAlarms(reef.deps);
    expect(told()).toEqual(["firing disk warning", "resolved disk warning", "resolved disk warning"]);
  });
});

describe("a unit that has failed", () => {
  const alarm = (...args: string[]) => runProgram(reef.env, "src/jobs/alarm.ts", ...args);
  const open = () => reef.sql`select key, severity, summary from alarms where resolved_at is null order by key`;

  test("is an alarm until it serves again", async () => {
    expect((await alarm("reef-api@1.service")).code).toBe(0);
    expect((await alarm("reef-api@1.service")).code).toBe(0);
    expect(told()).toEqual(["firing unit:reef-api@1 critical"]);
    expect(String(duty.posts[0]!["summary"])).toContain("journalctl -u reef-api@1.service");
    expect((await alarm("--over", "reef-gateway@main.service")).code).toBe(0);
    expect(await open()).toHaveLength(1);
    expect((await alarm("--over", "reef-api@1.service")).code).toBe(0);
    expect(told()).toEqual(["firing unit:reef-api@1 critical", "resolved unit:reef-api@1 critical"]);
  });

  test("and was a job that told of it keeps the job's words; one that could not is told of", async () => {
    await raiseAlarm(reef.deps, { key: "job:backup", severity: "warning", summary: "backup failed: no space" });
    expect((await alarm("reef-backup.service")).code).toBe(0);
    expect((await alarm("reef-verify-backup.service")).code).toBe(0);
    expect(told()).toEqual(["firing job:backup warning", "firing job:verify-backup warning"]);
    expect(await open()).toEqual([
      { key: "job:backup", severity: "warning", summary: "backup failed: no space" },
      expect.objectContaining({ key: "job:verify-backup" }),
    ] as never);
  });

  test("is told without a database and with a configuration that is refused, without a secret in the words", async () => {
    const away = { ...reef.env, DATABASE_URL: "postgres://reef:hush@127.0.0.1:1/reef" };
    const refused = { ...reef.env, JWT_SECRET: "short-secret" };
    for (const env of [away, refused]) {
      const { code, said } = await runProgram(env, "src/jobs/alarm.ts", "reef-api@2.service");
      expect([code, said.includes("hush") || said.includes("short-secret")]).toEqual([0, false]);
    }
    expect(told()).toEqual(["firing unit:reef-api@2 critical", "firing unit:reef-api@2 critical"]);
    expect(smtp.mails).toHaveLength(2);
    expect(await open()).toEqual([] as never);
    // Its end can't be recorded then: the next start of the unit, or an operator, does it.
    expect((await runProgram(away, "src/jobs/alarm.ts", "--over", "reef-api@2.service")).code).toBe(1);
  });

  test("1 where nobody can be told, 2 without a unit, 0 with --help", async () => {
    const { ALARM_WEBHOOK_URL: _, ALARM_EMAIL: __, ...nobody } = reef.env;
    const away = { ...nobody, DATABASE_URL: "postgres://reef@127.0.0.1:1/reef" };
    expect((await runProgram(away, "src/jobs/alarm.ts", "reef-api@1.service")).code).toBe(1);
    duty.answer(500);
    const tell = () => runProgram({ ...reef.env, DATABASE_URL: away.DATABASE_URL }, "src/jobs/alarm.ts", "a.service");
    expect((await tell()).code).toBe(0);
    smtp.behave("later");
    const silent = await tell();
    expect([silent.code, silent.said.includes("nobody could be told")]).toEqual([1, true]);
    expect((await alarm()).code).toBe(2);
    expect(await runProgram({}, "src/jobs/alarm.ts", "--help")).toMatchObject({ code: 0 });
  });
});

test("a restart of a gateway that failed is the gateway's alarm: it ends when the gateway is well, and nobody else would end it", () => {
  expect(renderUnitAlarm("reef-restart-gateway@main.service")).toMatchObject({
    key: "gateway:main",
    severity: "critical",
  });
  expect(renderUnitAlarm("reef-gateway@main.service").key).toBe("unit:reef-gateway@main");
});

test("a gateway's start is awaited, for as long as its process lives", async () => {
  let ready = false;
  let asked = 0;
  const gateway = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch: () => (asked++, new Response(null, { status: ready ? 200 : 503 })),
  });
  const port = String(gateway.port);
  const waiting = runProgram({}, "src/jobs/awaitGateway.ts", port, String(process.pid));
  await until("it was asked more than once", () => asked > 2);
  ready = true;
  const { code, out } = await waiting;
  expect([code, out]).toEqual([0, expect.stringContaining("the gateway serves")]);
  await gateway.stop(true);
  const ended = Bun.spawn(["true"]);
  await ended.exited;
  expect((await runProgram({}, "src/jobs/awaitGateway.ts", port, String(ended.pid))).code).toBe(1);
  expect((await runProgram({}, "src/jobs/awaitGateway.ts", newId())).code).toBe(2);
});
