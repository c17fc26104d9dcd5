import { afterAll, beforeAll, expect, test } from "bun:test";
import { newId } from "../../src/lib/ids.ts";
import { pruneLogs, removeExpired } from "../../src/services/removeOld.ts";
import { makeUser, type TestUser } from "../factories.ts";
import { startTestReef, type TestReef } from "../harness.ts";
import { runProgram } from "./program.ts";

let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef()));
afterAll(() => reef.stop());

const never = new AbortController().signal;
const ago = (amount: number, unit: "hours" | "days") => reef.sql`now() - ${`${amount} ${unit}`}::interval`;

async function addSession(user: TestUser, name: string, expiredDays: number, revoked = false): Promise<void> {
  await reef.sql`
    insert into refresh_tokens (id, user_id, token_hash, device_name, expires_at, last_used_at, created_at, revoked_at)
    values (${newId()}, ${user.id}, '', ${name}, ${ago(expiredDays, "days")}, ${ago(expiredDays + 30, "days")},
      ${ago(expiredDays + 30, "days")}, ${revoked ? ago(expiredDays + 1, "days") : null})`;
}
const sessionsOf = async (user: TestUser) => {
  const rows = await reef.sql`select device_name from refresh_tokens where user_id = ${user.id} order by last_used_at`;
  return rows.map(({ deviceName }) => deviceName as string | null);
};

async function addKeys(user: TestUser, hours: number, count: number): Promise<void> {
  for (let n = 0; n < count; n++)
    await reef.sql`insert into idempotency_keys (user_id, key, request_hash, created_at)
      values (${user.id}, ${newId()}, '', ${ago(hours, "hours")})`;
}
const countKeys = async () => Number((await reef.sql`select count(*)::int as n from idempotency_keys`)[0]!["n"]);

test("devices: long run out are forgotten, living, lately ended and each person's newest are kept", async () => {
  const [lively, away] = [await makeUser(reef), await makeUser(reef)];
  await addSession(lively, "signed out long ago", 91, true);
  await addSession(lively, "ran out long ago", 400);
  await addSession(lively, "signed out lately", 89, true);
  await reef.sql`delete from refresh_tokens where user_id = ${away.id}`;
  await addSession(away, "phone", 500);
  await addSession(away, "tablet", 600);
  const { details } = await removeExpired(reef.deps, never, 1);
  expect(details).toMatchObject({ sessions: 3 });
  expect(await sessionsOf(lively)).toEqual(["signed out lately", null]);
  expect(await sessionsOf(away)).toEqual(["phone"]);
  // It is still known as ended, not as none of ours.
  expect((await lively.call("GET", "/api/auth/sessions")).status).toBe(200);
});

test("links, exports and mails given up: what can be of use stays", async () => {
  const { sql } = reef;
  const [one, two] = [await makeUser(reef), await makeUser(reef)];
  await sql`delete from one_time_tokens`;
  const token = (user: TestUser, kind: string, days: number, used: boolean) => sql`
    insert into one_time_tokens (id, user_id, kind, token_hash, expires_at, used_at)
    values (${newId()}, ${user.id}, ${kind}, '', ${ago(days, "days")}, ${used ? ago(1, "days") : null})`;
  await token(one, "verify_email", 1, false);
  await token(one, "reset_password", -1, false);
  await token(two, "reset_password", -1, true);
  const started = (hours: number, leaseHours: number) => sql`
    insert into exports (id, user_id, started_at, lease_until)
    values (${newId()}, ${one.id}, ${ago(hours, "hours")}, ${ago(leaseHours, "hours")})`;
  await started(2, 1);
  await started(3, -1);
  await started(0, 0);
  await sql`delete from outbox`;
  const mail = (template: string, deadDays: number | null) => sql`
    insert into outbox (id, template, recipient, created_at, next_attempt_at, dead_at)
    values (${newId()}, ${template}, 'a@example.org', ${ago(40, "days")}, ${ago(-1, "days")},
      ${deadDays === null ? null : ago(deadDays, "days")})`;
  await mail("given up long ago", 31);
  await mail("given up lately", 29);
  await mail("waiting", null);
  const { ok, summary, details } = await removeExpired(reef.deps, never);
  expect([ok, details]).toEqual([
    true,
    { one_time_tokens: 2, sessions: 0, idempotency_keys: 0, exports: 1, dead_mails: 1 },
  ]);
  expect(summary).toBe("removed 2 one_time_tokens, 0 sessions, 0 idempotency_keys, 1 exports, 1 dead_mails");
  const left = await sql`select user_id, kind from one_time_tokens`;
  expect([...left]).toEqual([{ userId: one.id, kind: "reset_password" }] as never);
  expect((await sql`select template from outbox order by template`).map((row) => row["template"])).toEqual([
    "given up lately",
    "waiting",
  ]);
});

test("two at once take each row once, pass over what is locked, and stop when they are to", async () => {
  const { sql } = reef;
  const user = await makeUser(reef);
  await addKeys(user, 25, 12);
  await addKeys(user, 23, 2);
  const stopped = new AbortController();
  stopped.abort(new Error("the lock is lost"));
  expect(removeExpired(reef.deps, stopped.signal)).rejects.toThrow("the lock is lost");
  await sql.begin(async (tx) => {
    await tx`select 1 from idempotency_keys where created_at < now() - interval '24 hours' limit 1 for update`;
    const both = await Promise.all([removeExpired(reef.deps, never, 2), removeExpired(reef.deps, never, 2)]);
    expect(both.reduce((sum, { details }) => sum + Number(details!["idempotency_keys"]), 0)).toBe(11);
  });
  expect(await countKeys()).toBe(3);
  const { code, out } = await runProgram(reef.env, "src/jobs/removeExpired.ts");
  expect([code, out]).toEqual([0, expect.stringMatching(/^remove-expired: ok: removed .* 1 idempotency_keys/)]);
  expect(await countKeys()).toBe(2);
});

test("records of the operation: old ones go, but each job's newest of each outcome, what is open, and the audit's time", async () => {
  const { sql } = reef;
  const run = (name: string, outcome: string, days: number) => sql`
    insert into job_runs (id, job, host, started_at, outcome, summary)
    values (${newId()}, ${name}, 'here', ${ago(days, "days")}, ${outcome}, ${`${name} ${outcome} ${days}`})`;
  for (const days of [200, 150, 89]) await run("often", "ok", days);
  for (const days of [300, 250]) await run("often", "failed", days);
  for (const days of [400, 399]) await run("rare", "ok", days);
  const alarm = (key: string, days: number | null) => sql`
    insert into alarms (key, severity, summary, host, first_at, resolved_at)
    values (${key}, 'warning', '', 'here', ${ago(500, "days")}, ${days === null ? null : ago(days, "days")})`;
  await alarm("over long ago", 91);
  await alarm("over lately", 89);
  await alarm("open", null);
  await sql`delete from audit_log`;
  const act = (days: number) => sql`
    insert into audit_log (id, at, actor, action) values (${newId()}, ${ago(days, "days")}, ${String(days)}, 'account.signup')`;
  for (const days of [401, 399, 31, 29]) await act(days);
  const { details } = await pruneLogs(reef.deps, never, 1);
  expect(details).toEqual({ job_runs: 4, alarms: 1, audit_log: 1 });
  const summaries = await sql`select summary from job_runs where host = 'here' order by summary`;
  expect(summaries.map((row) => row["summary"])).toEqual(["often failed 250", "often ok 89", "rare ok 399"]);
  expect((await sql`select key from alarms order by key`).map((row) => row["key"])).toEqual(["open", "over lately"]);
  const { code, out } = await runProgram({ ...reef.env, AUDIT_KEEP_DAYS: "30" }, "src/jobs/pruneLogs.ts");
  expect([code, out]).toEqual([0, "prune-logs: ok: removed 0 job_runs, 0 alarms, 2 audit_log"]);
  expect((await sql`select actor from audit_log`).map((row) => row["actor"])).toEqual(["29"]);
});
