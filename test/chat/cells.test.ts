import { afterEach, expect, test } from "bun:test";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import type { FakeGateway } from "../fakes/gateway.ts";
import { findPlacement, listGateways } from "../../src/db/gateways.ts";
import { checkInvariants } from "../../src/services/invariants.ts";
import { unpack } from "../api/archives.ts";
import { isAnswer, makeAssistant, makeUser, openChat, type Json, type TestUser } from "../factories.ts";
import { Script } from "../faults/script.ts";
import { serveFolder, startProcess, startTestGateway, startTestReef, until, type TestReef } from "../harness.ts";

/*
 * Two cells: process A with the gateway "main", process B with the gateway "b", each beside its own gateway's folder. And
 * fronts, which have no gateway. Everybody may connect anywhere.
 */

type Process = Awaited<ReturnType<typeof startProcess>>;
interface Cell extends Process {
  gateway: FakeGateway;
  dir: string;
  env: Record<string, string>;
}

let reef: TestReef;
const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
  await reef.stop();
});

async function startCells(overrides: Record<string, string> = {}): Promise<Cell> {
  reef = await startTestReef(overrides);
  await reef.sql`update plan_limits set assistants = 5 where plan = 'free'`;
  const { dir, gateway } = await startTestGateway();
  closers.push(() => rmSync(dir, { recursive: true, force: true }));
  closers.push(() => gateway.stop());
  const files = serveFolder(dir);
  closers.push(() => files.stop());
  const env = {
    ...reef.env,
    ...files.env,
    GATEWAY_ID: "b",
    OPENCLAW_GATEWAY_URL: gateway.url,
    OPENCLAW_GATEWAY_DIR: dir,
  };
  const process = await startProcess(env);
  closers.push(() => process.stop());
  await until("both are seen", async () => (await seen()).join() === "b,main");
  return { ...process, gateway, dir, env };
}

async function startFront(overrides: Record<string, string> = {}): Promise<Process> {
  const names = Object.keys(reef.env).filter((name) => !name.startsWith("OPENCLAW_"));
  const env = Object.fromEntries(names.map((name) => [name, reef.env[name]!]));
  const front = await startProcess({ ...env, ROLE: "front", GATEWAY_FILES_TOKEN: "test-files-token", ...overrides });
  closers.push(() => front.stop());
  return front;
}

const seen = async () =>
  (await reef.sql`select id from gateways where last_seen_at > now() - interval '1 minute' order by id`).map(
    (row) => row["id"],
  );
const away = (id: string) => reef.sql`update gateways set last_seen_at = now() - interval '1 hour' where id = ${id}`;
const rowOf = async (table: "turns" | "assistants" | "usage_logs", id: string): Promise<Json> =>
  (await reef.sql`select * from ${reef.sql(table)} where id = ${id}`)[0];

/** An assistant on that gateway, awake. */
async function makeOn(user: TestUser, gateway: string): Promise<Json> {
  await reef.sql`update gateways set status = case id when ${gateway} then 'active' else 'draining' end`;
  const assistant = await makeAssistant(user);
  await reef.sql`update gateways set status = 'active'`;
  const row = await until("it is awake", async () => {
    const found = await rowOf("assistants", assistant.id);
    return found.state === "awake" ? found : null;
  });
  expect(row.gatewayId).toBe(gateway);
  return assistant;
}

test("a socket on one cell, the assistant on the other: streamed, stopped, both ways, also through a front", async () => {
  const b = await startCells();
  const front = await startFront();
  const user = await makeUser(reef);
  const homes = {
    main: { cell: reef, assistant: await makeOn(user, "main") },
    b: { cell: b, assistant: await makeOn(user, "b") },
  };
  for (const [at, home] of [
    [reef, homes.b],
    [b, homes.main],
    [front, homes.b],
    [front, homes.main],
  ] as const) {
    const script = new Script(["one, ", "two, ", "three."]);
    closers.push(() => script.open());
    home.cell.gateway.setAnswer(script.fakeAnswer);
    const chat = await openChat(at, user.token, home.assistant.agent_id);
    chat.say("tell me");
    script.open(1);
    await chat.next("its first part", (frame) => frame.type === "chunk" && frame.content.startsWith("one"));
    script.open();
    expect(await chat.next("the answer", isAnswer)).toMatchObject({ content: "one, two, three." });

    const long = new Script(["Well, ", "never."]);
    closers.push(() => long.open());
    home.cell.gateway.setAnswer(long.fakeAnswer);
    const before = chat.frames.length;
    chat.say("and now");
    long.open(1);
    await until("it writes", () => chat.frames.slice(before).some((frame) => frame.type === "chunk"));
    chat.send({ type: "stop" });
    await until("it is stopped", () =>
      chat.frames.slice(before).find((frame) => isAnswer(frame) && frame.finish === "stopped"),
    );
    chat.close();
  }
  for (const { cell } of Object.values(homes)) expect(cell.gateway.sends.length).toBe(4);
  // Each looks at its own folder, all at the rows; a front has no folder.
  for (const { deps } of [reef, b, front]) {
    const findings = await checkInvariants(deps, { patienceMs: 10_000, timeoutMs: 10_000 });
    expect(findings.filter(({ status }) => status !== "ok")).toEqual([]);
    expect(findings.some(({ id }) => id === "config_current")).toBe(deps !== front.deps);
  }
});

test("new assistants go to a gateway that is there; to a draining one none; away is better than nowhere", async () => {
  await startCells();
  const place = () => findPlacement(reef.sql);
  const user = await makeUser(reef);
  const first = await makeOn(user, "b");
  expect(await place()).toBe("main");
  await away("main");
  expect(await place()).toBe("b");
  await away("b");
  expect(await place()).toBe("main");
  // It just restarts; the other one may never come back.
  await reef.sql`update gateways set last_seen_at = now() - interval '5 minutes' where id = 'b'`;
  expect(await place()).toBe("b");
  await away("b");
  await reef.sql`update gateways set placement_stopped_reason = 'canary' where id = 'main'`;
  expect(await place()).toBe("b");
  await reef.sql`update gateways set placement_stopped_reason = null`;
  // By the operator's hand; those that live there are answered on.
  const admin = async (...words: string[]) => {
    const command = [
      process.execPath,
      "--no-env-file",
      resolve(import.meta.dir, "../../src/jobs/admin.ts"),
      "gateway",
      ...words,
    ];
    const child = Bun.spawn(command, {
      env: { PATH: process.env["PATH"]!, ...reef.env },
      stdout: "pipe",
      stderr: "pipe",
    });
    const [out, said] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
    return { code: await child.exited, out, said };
  };
  expect((await admin("drain", "b")).code).toBe(0);
  expect((await admin("drain", "b")).code).toBe(0);
  expect(await place()).toBe("main");
  expect((await admin("list")).out).toMatch(/^b +draining .*1 assistants.*http.*\nmain +active /);
  const chat = await openChat(reef, user.token, first.agent_id);
  chat.say("hello");
  await chat.next("the answer", isAnswer);
  expect((await admin("drain", "main")).code).toBe(0);
  expect((await user.call("POST", "/api/assistants", {})).status).toBe(503);
  expect((await admin("activate", "b")).code).toBe(0);
  expect(await place()).toBe("b");
  expect(await admin("drain", "nobody")).toMatchObject({ code: 1, said: expect.stringContaining("no gateway") });
  const audits = await reef.sql`select action, details from audit_log where action like 'gateway.%' order by id`;
  expect(audits.map((row) => `${row["action"]} ${row["details"].gateway}`)).toEqual([
    "gateway.drained b",
    "gateway.drained main",
    "gateway.activated b",
  ]);
});

test("an export has the files of both gateways, wherever it is asked for; without that host it is refused", async () => {
  const b = await startCells();
  const user = await makeUser(reef);
  const here = await makeOn(user, "main");
  const there = await makeOn(user, "b");
  writeFileSync(join(reef.dir, "workspaces", here.agent_id, "here.md"), "lives on main");
  writeFileSync(join(b.dir, "workspaces", there.agent_id, "there.md"), "lives on b");
  const get = async (at: { url: string }) => {
    await b.deps.sql`delete from exports`;
    return fetch(`${at.url}/api/user/export`, { headers: { authorization: `Bearer ${user.token}` } });
  };
  // A's own folder is not served to others: only A can read it.
  expect((await get(b)).status).toBe(503);
  const noToken = await get(reef);
  expect(noToken.status).toBe(503);
  const files = serveFolder(reef.dir);
  closers.push(() => files.stop());
  await reef.stopProcess();
  const a = await startProcess({ ...reef.env, ...files.env });
  closers.push(() => a.stop());
  for (const at of [a, b, await startFront()]) {
    const response = await get(at);
    expect(response.status).toBe(200);
    const texts = [...(await unpack(Buffer.from(await response.arrayBuffer()))).values()].map((file) =>
      file.content.toString(),
    );
    expect(texts).toContain("lives on main");
    expect(texts).toContain("lives on b");
  }
  // An address that leads to another gateway's folder is no gateway without files.
  await b.deps.sql`update gateways set files_url = (select files_url from gateways where id = 'b') where id = 'main'`;
  expect(
    await (await get(b)).arrayBuffer().then(
      () => "whole",
      () => "broken off",
    ),
  ).toBe("broken off");
  await b.deps.sql`update gateways set files_url = ${files.env["GATEWAY_FILES_URL"]!} where id = 'main'`;
  await files.stop();
  const broken = await get(b);
  expect(
    await broken.arrayBuffer().then(
      () => "whole",
      () => "broken off",
    ),
  ).toBe("broken off");
});

test("an account that leaves through one cell leaves nothing on the other", async () => {
  const b = await startCells();
  const user = await makeUser(reef);
  const agents = [await makeOn(user, "main"), await makeOn(user, "b")].map(({ agent_id: id }) => id);
  expect((await user.call("DELETE", "/api/user/account", { password: user.password })).status).toBeLessThan(300);
  await until(
    "it is gone",
    async () => (await reef.sql`select 1 from users where id = ${user.id}`).length === 0,
    20_000,
  );
  for (const dir of [reef.dir, b.dir])
    for (const agent of agents) {
      expect(readFileSync(join(dir, "openclaw.json"), "utf8")).not.toContain(agent);
      expect(await b.deps.workspaces.listAgents()).not.toContain(agent);
      expect(await reef.deps.workspaces.listAgents()).not.toContain(agent);
    }
});

test("a cell that is gone: what waits for it is stopped and given back by others; it comes back and answers what is left", async () => {
  const b = await startCells({ TURN_WAIT_MS: "20000" });
  const user = await makeUser(reef);
  const assistant = await makeOn(user, "b");
  await b.stop();
  const chat = await openChat(reef, user.token, assistant.agent_id);
  const say = async (text: string) => {
    const client = chat.say(text);
    return (await chat.next("its ack", (frame) => frame.type === "ack" && frame.client_id === client))
      .turn_id as string;
  };
  await away("b");
  const stopped = await say("never mind");
  chat.send({ type: "stop" });
  await until("it is stopped", async () => (await rowOf("turns", stopped)).status === "stopped");
  const late = await say("too late");
  await reef.sql`update turns set queued_at = now() - interval '1 hour' where id = ${late}`;
  await until("it is given back", async () => (await rowOf("turns", late)).status === "failed");
  await chat.next("why", (frame) => frame.type === "error" && frame.turn_id === late);
  // Whoever is suspended is not asked for: it is stopped, not failed, and does not wait for its time.
  const unasked = await say("from somebody who is suspended");
  await reef.sql`update users set status = 'suspended' where id = ${user.id}`;
  await until("it is stopped, too", async () => (await rowOf("turns", unasked)).status === "stopped");
  await reef.sql`update users set status = 'active' where id = ${user.id}`;
  // One that was being answered when the host went: nobody else may run it, and at last somebody ends it.
  const lost = await say("in the middle");
  await reef.sql`
    update turns set status = 'streaming', attempts = 1, lease_owner = gen_random_uuid(), lease_until = now() - interval '10 seconds',
      dispatched_at = now() - interval '315 seconds' where id = ${lost}`;
  const kept = await say("still wanted");
  await Bun.sleep(1500);
  expect((await rowOf("turns", lost)).status).toBe("streaming");
  await reef.sql`update turns set dispatched_at = now() - interval '321 seconds' where id = ${lost}`;
  await until("it is ended", async () => (await rowOf("turns", lost)).status === "failed");
  const charged = await reef.sql`select status from usage_logs where user_id = ${user.id} and status = 'committed'`;
  expect(charged.length).toBe(0);
  const back = await startProcess(b.env);
  closers.push(() => back.stop());
  await until("what was left is answered", async () => (await rowOf("turns", kept)).status === "done");
});

test("ready is who can serve somebody: without its own gateway while another one is there, a front always", async () => {
  const b = await startCells();
  const front = await startFront();
  const status = async (at: { url: string }, path: string) => (await fetch(at.url + path)).status;
  const health = async (at: { url: string }): Promise<Json> => (await fetch(`${at.url}/health`)).json();
  for (const at of [reef, b, front]) {
    expect([await status(at, "/readyz"), await status(at, "/health")]).toEqual([200, 200]);
    expect((await health(at)).gateways).toEqual({ ready: 2, total: 2 });
  }
  await reef.gateway.stop();
  await until("A has lost its gateway", () => !reef.deps.gateway.isReady());
  await away("main");
  for (const at of [reef, b, front]) {
    expect([await status(at, "/readyz"), await status(at, "/health")]).toEqual([200, 503]);
    expect((await health(at)).down).toEqual(["gateway main"]);
  }
  await b.gateway.stop();
  await until("B has lost its gateway", () => !b.deps.gateway.isReady());
  await away("b");
  for (const at of [reef, b]) expect(await status(at, "/readyz")).toBe(503);
  expect(await status(front, "/readyz")).toBe(200);
});

test("each cell counts what is wrong with its own gateway; a front counts all that waits", async () => {
  const every = { INVARIANTS_EVERY_MS: "100" };
  const b = await startCells(every);
  const front = await startFront();
  const scrape = async (at: { url: string }) => (await fetch(`${at.url}/metrics`)).text();
  for (const at of [reef, b])
    await until("both shares are counted", async () =>
      /invariant_violations\{invariant="purged_files"\} 0/.test(await scrape(at)),
    );
  const shares = await Promise.all(["", ":main", ":b"].map((name) => reef.deps.redis.get(`invariants:last${name}`)));
  const [rows = [], ...gateways] = shares.map((share) =>
    JSON.parse(share!).findings.map((one: Json) => one.id as string),
  );
  expect(rows).toContain("seq_gapless");
  for (const gateway of gateways)
    expect(gateway).toEqual(["config_valid", "config_current", "configured_awake", "purged_files"]);
  expect(rows).not.toContain("purged_files");
  const text = await scrape(front);
  expect(text).not.toContain("purged_files");
  expect(text).toContain('reef_process_info{role="front",gateway="none"} 1');
  expect(await scrape(b)).toContain('reef_process_info{role="all",gateway="b"} 1');
  expect(text).toContain('reef_turns{status="queued"} 0');
  expect(text).toContain("reef_database_up 1");
});

test("a gateway that stays away while the process that was answering is gone, too: given back by whoever is there", async () => {
  reef = await startTestReef({ TURN_TOTAL_MS: "1000", TURN_WAIT_MS: "2000" });
  const user = await makeUser(reef);
  const assistant = await makeOn(user, "main");
  const chat = await openChat(reef, user.token, assistant.agent_id);
  await reef.gateway.stop();
  await until("it has lost its gateway", () => !reef.deps.gateway.isReady());
  await away("main");
  const say = async (text: string) => {
    const client = chat.say(text);
    return (await chat.next("its ack", (frame) => frame.type === "ack" && frame.client_id === client))
      .turn_id as string;
  };
  const id = await say("in the middle");
  await reef.sql`
    update turns set status = 'streaming', attempts = 1, lease_owner = gen_random_uuid(), lease_until = now() - interval '1 second',
      dispatched_at = now() where id = ${id}`;
  const queued = await say("behind it");
  await chat.next("why it was dropped", (frame) => frame.type === "error" && frame.turn_id === queued);
  await until("it is ended", async () => (await rowOf("turns", id)).status === "failed", 15_000);
  await chat.next("why it was ended", (frame) => frame.type === "error" && frame.turn_id === id);
  const charged = await reef.sql`select 1 from usage_logs where user_id = ${user.id} and status <> 'released'`;
  expect(charged.length).toBe(0);
  chat.close();
});

test("a drained gateway is needed until what was deleted on it is erased", async () => {
  const b = await startCells();
  const user = await makeUser(reef);
  const assistant = await makeOn(user, "b");
  const of = async (id: string) => (await listGateways(reef.sql)).find((row) => row.id === id)!.assistants;
  const down = async () => ((await (await fetch(`${reef.url}/health`)).json()) as Json).down;
  await reef.sql`update gateways set status = 'draining' where id = 'b'`;
  await b.stop();
  await away("b");
  expect((await user.call("DELETE", `/api/assistants/${assistant.id}`)).status).toBeLessThan(300);
  expect([await of("b"), await down()]).toEqual([1, ["gateway b"]]);
  const back = await startProcess(b.env);
  closers.push(() => back.stop());
  await until("it is erased", async () => (await rowOf("assistants", assistant.id)).purgeStep === "purged", 20_000);
  await back.stop();
  await away("b");
  expect([await of("b"), await down()]).toEqual([0, undefined]);
});
