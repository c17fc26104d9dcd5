import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createWorkspaces } from "../../src/clients/workspaces.ts";
import { loadConfig } from "../../src/config.ts";
import { insertRestart } from "../../src/db/gatewayRestarts.ts";
import { connectDatabase, type Sql } from "../../src/db/connect.ts";
import type { HeldLock } from "../../src/db/locks.ts";
import { newId } from "../../src/lib/ids.ts";
import { createLog } from "../../src/lib/log.ts";
import { careForGateway, RESTARTS_AN_HOUR } from "../../src/services/gatewayCare.ts";
import { renderGatewayConfig } from "../../src/services/gatewayConfig.ts";
import { createTestDatabase, until } from "../harness.ts";
import { makeStandIn, showUnit, type StandIn } from "./standIn.ts";

const TOKEN = "test-gateway-token";
const FOLDER = "/run/reef/restart-gateway";
const patience = { lookMs: 600, pauseMs: 10, takenMs: 5_000, backMs: 10_000 };
const lock: HeldLock = { signal: new AbortController().signal, requireHeld: async () => undefined };
const log = createLog("silent");

let dir: string;
let sql: Sql;
let databaseUrl: string;
let machine: StandIn;
const ended: (() => unknown)[] = [];

beforeAll(async () => {
  databaseUrl = await createTestDatabase();
  sql = connectDatabase(databaseUrl, { max: 3, name: "test" });
  dir = mkdtempSync(join(tmpdir(), "reef-care-"));
  const workspaces = createWorkspaces(dir, log);
  await workspaces.writeConfig(renderGatewayConfig({ config: settingsOf(1), workspaces }, []));
});
afterAll(async () => {
  await sql?.end({ timeout: 1 });
  rmSync(dir, { recursive: true, force: true });
});
afterEach(async () => {
  for (const end of ended.splice(0).reverse()) await end();
  await sql`delete from gateway_restarts`;
  await sql`delete from alarms`;
});

/** The fake gateway in a process of its own. */
async function startProcess(port = 0) {
  const child = Bun.spawn([process.execPath, join(import.meta.dir, "gatewayProcess.ts"), dir, String(port), TOKEN], {
    stdin: "pipe",
    stdout: "pipe",
    stderr: "inherit",
  });
  ended.push(async () => {
    child.kill("SIGKILL");
    await child.exited;
  });
  const reader = child.stdout.getReader();
  const line = async () => new TextDecoder().decode((await reader.read()).value).trim();
  const said = Number(await line());
  return {
    pid: child.pid,
    port: said,
    kill: async () => {
      child.kill("SIGKILL");
      await child.exited;
    },
    async holdLoop(ms: number) {
      void child.stdin.write(`${ms}\n`);
      await child.stdin.flush();
      await line();
    },
  };
}

/** A gateway that lives by its probe and answers no call, ever; counts who came. */
function startDeaf(
  readyz: () => Response | Promise<Response> = () => Response.json({ ready: true, uptimeMs: 9_000_000 }),
) {
  const seen = { connections: 0 };
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch(request, own) {
      const { pathname } = new URL(request.url);
      if (pathname === "/healthz") return Response.json({ ok: true });
      if (pathname === "/readyz") return readyz();
      return own.upgrade(request) ? undefined : new Response("", { status: 404 });
    },
    websocket: { open: () => void seen.connections++, message: () => undefined },
  });
  ended.push(() => server.stop(true));
  return { port: server.port!, seen };
}

function makeMachine(): StandIn {
  machine = makeStandIn();
  ended.push(() => machine.remove());
  return machine;
}

function settingsOf(port: number, settings: Record<string, string> = {}) {
  return loadConfig({
    DATABASE_URL: databaseUrl,
    REDIS_URL: "redis://127.0.0.1:1",
    JWT_SECRET: "a-test-secret-of-enough-characters",
    OPENCLAW_GATEWAY_URL: `ws://127.0.0.1:${port}`,
    OPENCLAW_GATEWAY_TOKEN: TOKEN,
    OPENCLAW_GATEWAY_DIR: dir,
    ...settings,
  });
}

function care(port: number, settings: Record<string, string> = { GATEWAY_RESTART_DIR: FOLDER }, times = {}) {
  const config = settingsOf(port, settings);
  const alarmSender = { isConfigured: false, send: async () => undefined };
  return careForGateway({ sql, config, log, alarmSender }, machine.host, lock, { ...patience, ...times });
}

const sign = () => join(machine.root, FOLDER, "main");
const alarms = () => sql`select key, severity, summary, resolved_at from alarms`;
const restarts = async () => (await sql`select reason from gateway_restarts`).length;

/** As reef-restart-gateway@.path and .service do. */
function obeySigns(restart: () => Promise<unknown>): { asked: () => number } {
  let asked = 0;
  let over = false;
  const loop = (async () => {
    while (!over) {
      if (existsSync(sign())) {
        asked++;
        rmSync(sign());
        await restart();
      }
      await Bun.sleep(10);
    }
  })();
  ended.push(async () => {
    over = true;
    await loop;
  });
  return { asked: () => asked };
}

test("a gateway that stands still is restarted once, counted and told of; the alarm is over when it is back", async () => {
  makeMachine();
  const gateway = await startProcess();
  process.kill(gateway.pid, "SIGSTOP");
  const unit = obeySigns(async () => {
    const [row] = await alarms();
    expect(row).toMatchObject({ key: "gateway:main", severity: "critical", resolvedAt: null });
    await gateway.kill();
    await startProcess(gateway.port);
  });
  const outcome = await care(gateway.port);
  expect(outcome).toMatchObject({ ok: true, restarted: true });
  expect(outcome.said).toContain("restarted and answers again (restart 1 of 3 this hour)");
  expect(unit.asked()).toBe(1);
  expect(await restarts()).toBe(1);
  expect((await alarms())[0]!.resolvedAt).not.toBeNull();
});

test("one whose event loop is late answers late, and is left alone", async () => {
  makeMachine();
  const gateway = await startProcess();
  await gateway.holdLoop(1_500);
  const outcome = await care(gateway.port, undefined, { lookMs: 10_000 });
  expect(outcome.said).toMatch(/answers \(\d{3,} ms\)/);
  expect({ ...outcome, said: "" }).toEqual({ ok: true, said: "", restarted: false });
  expect([await restarts(), (await alarms()).length]).toEqual([0, 0]);
});

test("silent: at work is busy, idle is broken, and that only after three looks", async () => {
  const deaf = startDeaf();
  const state = { ActiveState: "active", ActiveEnterTimestampMonotonic: "1000000" };
  const at = join(makeMachine().root, "cpu");
  machine.write("/proc/uptime", "10000.0 1.0\n");
  // Each question finds ten seconds more of processor time used.
  machine.program(
    "systemctl",
    `echo x >> ${at}; ${showUnit(state)}; echo CPUUsageNSec=$(/usr/bin/wc -l < ${at})0000000000`,
  );
  expect(await care(deaf.port)).toMatchObject({ ok: true, restarted: false });
  expect(deaf.seen.connections).toBe(1);
  expect(existsSync(sign())).toBe(false);

  machine.program("systemctl", showUnit({ ...state, CPUUsageNSec: "5000000000" }));
  const unit = obeySigns(async () => undefined);
  const outcome = await care(deaf.port, undefined, { backMs: 100 });
  expect(outcome).toMatchObject({ ok: false });
  expect(outcome.said).toContain("it was restarted and does not answer");
  expect(unit.asked()).toBe(1);
  // One while it was busy, three that prove it, the rest while it is waited for.
  expect(deaf.seen.connections).toBeGreaterThan(4);
  expect((await alarms())[0]).toMatchObject({ key: "gateway:main", severity: "critical", resolvedAt: null });
});

test("what lives and can't say whether it is ready is not proved broken by processor time that nobody counts", async () => {
  const deaf = startDeaf(() => new Promise<Response>(() => undefined));
  makeMachine();
  for (const CPUUsageNSec of ["[not set]", null]) {
    if (CPUUsageNSec === null) machine.program("systemctl", "exit 1");
    else
      machine.program(
        "systemctl",
        showUnit({ ActiveState: "active", CPUUsageNSec, ActiveEnterTimestampMonotonic: "1" }),
      );
    expect((await care(deaf.port)).said).toContain("is busy");
  }
  expect(await restarts()).toBe(0);
});

test("a gateway of another host is judged by what it answers, not by a unit of ours", async () => {
  makeMachine();
  machine.program(
    "systemctl",
    showUnit({ ActiveState: "inactive", CPUUsageNSec: "1", ActiveEnterTimestampMonotonic: "0" }),
  );
  const settings = { GATEWAY_RESTART_DIR: FOLDER, OPENCLAW_GATEWAY_URL: "ws://elsewhere.invalid:1" };
  expect((await care(1, settings)).said).toContain("it runs on another host, which has to restart it");
});

test("a look that it answers ends the suspicion", async () => {
  makeMachine();
  const gateway = await startProcess();
  await gateway.kill();
  const caring = care(gateway.port, undefined, { pauseMs: 2_000 });
  await startProcess(gateway.port);
  expect(await caring).toMatchObject({ ok: true, restarted: false });
  expect(await restarts()).toBe(0);
});

test("a wrong token is a refused handshake, and counts", async () => {
  makeMachine();
  const gateway = await startProcess();
  obeySigns(async () => undefined);
  const outcome = await care(
    gateway.port,
    { GATEWAY_RESTART_DIR: FOLDER, OPENCLAW_GATEWAY_TOKEN: "another-token-altogether" },
    { backMs: 100 },
  );
  expect(outcome.said).toContain("refuses the handshake (INVALID_REQUEST)");
  expect(await restarts()).toBe(1);
});

test("what somebody stopped or starts is left alone", async () => {
  makeMachine();
  machine.program(
    "systemctl",
    showUnit({ ActiveState: "inactive", CPUUsageNSec: "1", ActiveEnterTimestampMonotonic: "0" }),
  );
  expect(await care(1)).toMatchObject({ ok: false, restarted: false });
  expect((await alarms())[0]!["summary"]).toContain("was stopped: systemctl start reef-gateway@main");
  machine.program(
    "systemctl",
    showUnit({ ActiveState: "activating", CPUUsageNSec: "1", ActiveEnterTimestampMonotonic: "0" }),
  );
  expect(await care(1)).toMatchObject({ ok: true, restarted: false, said: "gateway main is activating" });
  // Active for five seconds, and nobody listens yet.
  machine.write("/proc/uptime", "100.0 1.0\n");
  const young = { ActiveState: "active", CPUUsageNSec: "1", ActiveEnterTimestampMonotonic: "95000000" };
  machine.program("systemctl", showUnit(young));
  expect(await care(1)).toMatchObject({ ok: true, said: "gateway main is starting" });
  machine.program("systemctl", showUnit({ ...young, ActiveState: "failed" }));
  expect((await care(1, {})).ok).toBe(false);
  expect(await restarts()).toBe(0);
});

test("a host that has no gateway has none to care for", async () => {
  makeMachine();
  const nothing = { ok: true, restarted: false, said: "no gateway here" };
  expect(await care(1, { ROLE: "front" })).toEqual(nothing);
  expect((await alarms()).length).toBe(0);
});

test("the budget is counted from what was recorded, and then hands are off", async () => {
  makeMachine();
  const add = () => insertRestart(sql, { id: newId(), gatewayId: "main", host: "h", reason: "test" });
  for (let n = 0; n < RESTARTS_AN_HOUR; n++) await add();
  expect((await care(1)).said).toContain("3 restart(s) in an hour and 3 in a day did not help: hands off");
  expect(existsSync(sign())).toBe(false);
  expect(await restarts()).toBe(3);
  expect((await alarms())[0]).toMatchObject({ severity: "critical" });

  await sql`update gateway_restarts set asked_at = now() - interval '2 hours'`;
  for (let n = 0; n < 2; n++) await add();
  obeySigns(async () => undefined);
  expect((await care(1, undefined, { backMs: 50 })).said).toContain("it was restarted");
  expect((await care(1)).said).toContain("6 in a day did not help");
  await sql`update gateway_restarts set asked_at = now() - interval '25 hours'`;
  expect((await care(1, undefined, { backMs: 50 })).said).toContain("it was restarted");
});

test("where nobody takes the wish it is taken back, and said", async () => {
  makeMachine();
  const caring = care(1, undefined, { takenMs: 300 });
  await until("it is asked for", () => existsSync(sign()));
  expect((await caring).said).toContain("is reef-restart-gateway@main.path enabled?");
  expect(existsSync(sign())).toBe(false);
  expect((await care(1, {})).said).toContain("GATEWAY_RESTART_DIR is not set");
  expect(await restarts()).toBe(1);
});
