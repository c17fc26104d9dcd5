import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { hostname, tmpdir } from "node:os";
import { join, resolve } from "node:path";
import type { Room } from "../../src/clients/host.ts";
import { loadConfig } from "../../src/config.ts";
import { insertJobRun, finishJobRun } from "../../src/db/jobRuns.ts";
import { withAdvisoryLock } from "../../src/db/locks.ts";
import { createDeps } from "../../src/deps.ts";
import { newId } from "../../src/lib/ids.ts";
import { createLog } from "../../src/lib/log.ts";
import { endAlarm, raiseAlarm } from "../../src/services/alarms.ts";
import { watchCanary } from "../../src/services/canary.ts";
import type { Place } from "../../src/services/doctor/place.ts";
import { watchAll } from "../../src/services/watch.ts";
import { makeAssistant, makeUser } from "../factories.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";
import { makeStandIn } from "./standIn.ts";

const root = resolve(import.meta.dir, "../..");
let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef()), 30_000);
afterAll(() => reef?.stop());

const nowhere: Place = { isTrial: false, hasSystemd: false, isInstalled: true, hasNginx: false, domain: null, api: [] };
const open = async () => {
  const rows = await reef.sql<{ key: string; severity: string }[]>`
    select key, severity from alarms where resolved_at is null order by key`;
  return rows.map(({ key, severity }) => `${key} ${severity}`);
};

test("what is only told of begins and ends with what is seen", async () => {
  const room = (share: number): Room => ({ bytes: 1000, freeBytes: share * 1000, inodes: 1000, freeInodes: 1000 });
  let left: Room = room(0.5);
  const machine = makeStandIn({ statfs: async (path) => (path === "/" ? left : room(0.9)) });
  const server = Bun.serve({
    port: 0,
    fetch: () => Response.json({ waiting_for: ["shutting down"] }, { status: 503 }),
  });
  const api = { name: "reef-api@1", url: `http://127.0.0.1:${server.port}` };
  const look = (place: Partial<Place> = {}) =>
    watchAll(reef.deps, machine.host, { ...nowhere, ...place }, { pauseMs: 10 });

  expect(await look()).toEqual([]);
  expect(await open()).toEqual([]);

  left = room(0.07);
  await reef.sql`update schema_migrations set applied_at = now() - interval '40 hours'`;
  expect((await look({ api: [api] })).join("; ")).toMatch(
    /there is no backup, 40 h after the start.*waits for shutting down.*disk of \/ has 7 % left/,
  );
  expect(await open()).toEqual(["api:reef-api@1 critical", "backup:age critical", "disk:/ warning"]);

  left = { ...room(0.5), freeInodes: 10 };
  const id = newId();
  await insertJobRun(reef.sql, { id, job: "backup", host: "h" });
  const gateways = [reef.deps.config.GATEWAY_ID];
  await finishJobRun(reef.sql, { id, outcome: "ok", summary: "", details: { local: true, gateways } });
  await look({ api: [{ ...api, url: reef.url }] });
  expect(await open()).toEqual(["disk:/ critical"]);
  await reef.sql`update job_runs set started_at = now() - interval '31 hours'`;
  expect((await look()).join()).toContain("the newest backup is 31 h old");

  // A gateway on another host is that host's to back up: the backup made here says nothing of its folder.
  await reef.sql`update job_runs set started_at = now()`;
  await reef.sql`insert into gateways (id, working_set, created_at) values ('eu', 10, now() - interval '40 hours')`;
  expect((await look()).join()).toContain("there is no backup of gateway eu, 40 h after the start");
  await reef.sql`update gateways set status = 'draining' where id = 'eu'`;
  expect((await look()).join()).not.toContain("backup");
  await reef.sql`delete from gateways where id = 'eu'`;

  // Two hosts have a disk "/": the one that is well does not end the alarm of the one that is not.
  await reef.sql`update alarms set host = 'another' where key = 'disk:/'`;
  left = room(0.5);
  await look({ isTrial: true });
  expect(await open()).toContain("disk:/ critical");
  await reef.sql`update alarms set last_at = now() - interval '3 days' where key = 'disk:/'`;
  await reef.sql`update job_runs set started_at = now()`;
  await look();
  expect(await open()).toEqual([]);
  await server.stop(true);
  machine.remove();
});

test("Redis away", async () => {
  const machine = makeStandIn();
  const deps = createDeps(loadConfig({ ...reef.env, REDIS_URL: "redis://127.0.0.1:1" }), createLog("silent"));
  await watchAll(deps, machine.host, { ...nowhere, isTrial: true });
  expect(await open()).toEqual(["redis critical"]);
  await watchAll(reef.deps, machine.host, { ...nowhere, isTrial: true });
  expect(await open()).toEqual([]);
  await deps.close();
  machine.remove();
});

test("answers that nobody takes up", async () => {
  const machine = makeStandIn();
  const user = await makeUser(reef);
  const { id } = await makeAssistant(user);
  await reef.sql`insert into gateways (id, working_set) values ('elsewhere', 1)`;
  const turn = newId();
  await reef.sql`
    insert into turns (id, assistant_id, user_id, gateway_id, seq, status, attempts, lease_owner, lease_until, dispatched_at)
    values (${turn}, ${id}, ${user.id}, 'elsewhere', 1, 'dispatched', 1, ${newId()}, now() - interval '3 minutes', now())`;
  const look = () => watchAll(reef.deps, machine.host, { ...nowhere, isTrial: true });
  expect((await look()).join()).toContain("1 running answer(s) belong to nobody");
  expect(await open()).toEqual(["leases critical"]);
  await reef.sql`delete from turns where id = ${turn}`;
  expect(await look()).toEqual([]);
  expect(await open()).toEqual([]);
  machine.remove();
});

/** Takes alarms as a chat's webhook does. */
function startWebhook() {
  const told: { key: string; status: string; summary: string }[] = [];
  const server = Bun.serve({
    port: 0,
    async fetch(request) {
      told.push((await request.json()) as (typeof told)[number]);
      return new Response("ok");
    },
  });
  return { told, url: `http://127.0.0.1:${server.port}/hook`, stop: () => server.stop(true) };
}

async function runJob(env: Record<string, string>, ...args: string[]) {
  const child = Bun.spawn([process.execPath, "--no-env-file", join(root, "src/jobs/checkHealth.ts"), ...args], {
    env: { PATH: process.env["PATH"] ?? "", ...env },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { code: await child.exited, out, err };
}

test("the job: a summary, a row; one at a time; --help", async () => {
  const api = { PORT: new URL(reef.url).port };
  const { code, out } = await runJob({ ...reef.env, ...api });
  expect(out).toMatch(/check-health: ok: gateway main answers \(\d+ ms\); /);
  expect(code).toBe(0);
  const runs = await reef.sql`select outcome, details from job_runs where job = 'check-health'`;
  expect(runs).toMatchObject([{ outcome: "ok", details: { gateway_ok: true, restarted: false } }]);
  await withAdvisoryLock(reef.sql, `job:check-health:${hostname()}`, async () => {
    expect((await runJob({ ...reef.env, ...api })).out).toContain("check-health: skipped: it is at work already");
  });
  expect((await runJob({}, "--help")).out).toContain("most 3 times an hour");
  expect((await runJob({})).code).toBe(78);
});

test("a database that answers and takes nothing is a failure of the job: systemd tells of that, nobody else would", async () => {
  const webhook = startWebhook();
  const env = { ...reef.env, PORT: new URL(reef.url).port, ALARM_WEBHOOK_URL: webhook.url };
  const name = new URL(reef.env["DATABASE_URL"]!).pathname.slice(1);
  // As after a full disk: it can be read.
  await reef.sql.unsafe(`alter database "${name}" set default_transaction_read_only = on`);
  try {
    const { code, err } = await runJob(env);
    expect(err).toContain("read-only");
    expect(code).toBe(1);
  } finally {
    await reef.sql.unsafe(`alter database "${name}" reset default_transaction_read_only`);
  }
  expect(webhook.told).toEqual([]);
  await webhook.stop();
}, 30_000);

test("without its database it tells all the same, once, and when it is over", async () => {
  const webhook = startWebhook();
  const folder = mkdtempSync(join(tmpdir(), `reef-test-${process.pid}-`));
  const env = {
    ...reef.env,
    PORT: new URL(reef.url).port,
    ALARM_WEBHOOK_URL: webhook.url,
    GATEWAY_RESTART_DIR: join(folder, "wishes"),
  };
  const down = { ...env, DATABASE_URL: "postgres://reef:planted-password@127.0.0.1:1/reef" };
  const first = await runJob(down);
  expect(first.code).toBe(75);
  expect(first.out + first.err).not.toContain("planted-password");
  expect(webhook.told).toMatchObject([{ key: "postgres", status: "firing" }]);
  expect((await runJob(down)).code).toBe(75);
  expect(webhook.told.length).toBe(1);
  expect((await runJob(env)).code).toBe(0);
  await until("it is told that it is over", () =>
    webhook.told.some(({ key, status }) => key === "postgres" && status === "resolved"),
  );
  expect(readdirSync(env.GATEWAY_RESTART_DIR)).toEqual([]);
  await webhook.stop();
  rmSync(folder, { recursive: true });
});

test("what a run of the canary has said is not covered by the health check's own words: a leak above all", async () => {
  const { sql, deps } = reef;
  const key = `canary:${deps.config.GATEWAY_ID}`;
  const stopped = async (reason: string, said: string) => {
    await sql`
      update gateways set canary_green_at = now() - interval '7 hours', canary_at = now(), placement_stopped_reason = ${reason}
      where id = ${deps.config.GATEWAY_ID}`;
    await raiseAlarm(deps, { key, severity: "critical", summary: said });
    await watchCanary(deps);
    const [alarm] = await sql<{ summary: string }[]>`select summary from alarms where key = ${key}`;
    return alarm!.summary;
  };
  expect(await stopped("canary_leak", "isolation leak: read:host")).toBe("isolation leak: read:host");
  expect(await stopped("canary_stale", "the address is taken")).toBe("the address is taken");
  // Nothing runs any more.
  await sql`update gateways set canary_at = now() - interval '7 hours'`;
  expect(await watchCanary(deps)).toContain("no run came to a good end");
  await sql`update gateways set canary_green_at = null, canary_at = null, placement_stopped_reason = null`;
  await endAlarm(deps, key);
});
