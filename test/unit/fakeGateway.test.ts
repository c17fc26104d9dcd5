import { afterEach, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startFakeGateway, type FakeGateway, type FakeGatewayOptions, type FakeRow } from "../fakes/gateway.ts";
import { connectRaw as connect, type Client, type Frame, type Json } from "../fakes/gatewayClient.ts";

const key = "agent:agent_a:app";
const both = ["operator.read", "operator.write"];
const dirs: string[] = [];
const gateways: FakeGateway[] = [];

afterEach(async () => {
  for (const gateway of gateways.splice(0)) await gateway.stop();
  for (const dir of dirs.splice(0)) rmSync(dir, { recursive: true, force: true });
});

function writeConfig(dir: string, ids: string[]): void {
  const entry = (id: string) => [id, { name: id, workspace: join(dir, "workspaces", id) }];
  writeRaw(dir, JSON.stringify({ agents: { ownership: "explicit", entries: Object.fromEntries(ids.map(entry)) } }));
}

function writeRaw(dir: string, text: string): void {
  writeFileSync(join(dir, "openclaw.json.tmp"), text);
  renameSync(join(dir, "openclaw.json.tmp"), join(dir, "openclaw.json"));
}

async function start(options: Partial<FakeGatewayOptions> = {}): Promise<FakeGateway> {
  const dir = mkdtempSync(join(tmpdir(), "fake-gateway-"));
  dirs.push(dir);
  writeConfig(dir, ["agent_a", "agent_b"]);
  return keep(await startFakeGateway({ dir, token: "secret", reloadMs: 20, ...options }));
}

function keep(gateway: FakeGateway): FakeGateway {
  gateways.push(gateway);
  return gateway;
}

const chat = (state: string, runId?: string) => (frame: Frame) =>
  frame.event === "chat" && frame.payload["state"] === state && (!runId || frame.payload["runId"] === runId);
const textOf = (frame: Frame) =>
  (frame.payload["message"] as { content: { text: string }[] } | undefined)?.content[0]?.text;
const send = (client: Client, idempotencyKey: string, message: string, sessionKey = key) =>
  client.call("chat.send", { sessionKey, message, idempotencyKey });
const rowsOf = async (client: Client, sessionKey = key) =>
  (await client.call("chat.history", { sessionKey })).payload["messages"] as FakeRow[];
const summary = (rows: FakeRow[]) => rows.map((row) => `${row.role} ${row.idempotencyKey ?? row.__openclaw.runId}`);

test("only a connect with the right token is let in", async () => {
  const gateway = await start();
  const wrong = await connect(gateway, { token: "other" });
  expect(wrong.hello.error).toMatchObject({ code: "INVALID_REQUEST", details: { code: "AUTH_TOKEN_MISMATCH" } });
  expect(await wrong.closed).toBe(1008);
  const early = await connect(gateway, { first: "chat.history" });
  expect(early.hello.error?.["message"]).toBe("invalid handshake: first request must be connect");
  const { hello } = await connect(gateway);
  expect(hello.payload).toMatchObject({ type: "hello-ok", protocol: 4, auth: { scopes: both } });
  expect(gateway.connections).toBe(1);
  const readyz = `${gateway.url.replace("ws:", "http:")}/readyz`;
  expect((await fetch(readyz)).status).toBe(200);
  gateway.setReady(false);
  expect((await fetch(readyz)).status).toBe(503);
  expect(await (await connect(gateway)).closed).toBe(1013);
});

test("a turn streams, ends, and is in the history with its usage", async () => {
  const gateway = await start();
  const client = await connect(gateway);
  expect((await send(client, "k1", "\u2060hello you")).payload).toEqual({ runId: "k1", status: "started" });
  expect(textOf(await client.event(chat("final", "k1")))).toBe("Echo: hello you");
  const deltas = client.events.filter(chat("delta")).map((frame) => frame.payload["deltaText"]);
  expect(deltas).toEqual(["Echo:", " hello", " you"]);
  const [user, assistant] = await rowsOf(client);
  expect(user).toMatchObject({ role: "user", content: "\u2060hello you", idempotencyKey: "k1:user" });
  expect(assistant).toMatchObject({ role: "assistant", stopReason: "stop", __openclaw: { runId: "k1" } });
  expect(assistant!.usage!.cost.total).toBeGreaterThan(0);
  const page = (await client.call("chat.history", { sessionKey: key, limit: 1 })).payload;
  expect(page).toMatchObject({ hasMore: true, nextOffset: 1, totalMessages: 2 });
  expect(gateway.modelCalls).toEqual([{ agentId: "agent_a", sessionKey: key, runId: "k1", text: "hello you" }]);
});

test("one key runs once", async () => {
  const gate = Promise.withResolvers<void>();
  const gateway = await start({
    answer: async function* () {
      yield { wait: gate.promise };
      yield { text: "ok" };
    },
  });
  const client = await connect(gateway);
  await send(client, "k1", "hello");
  expect((await send(client, "k1", "hello")).payload["status"]).toBe("in_flight");
  expect((await send(client, "k1", "other")).error?.["details"]).toEqual({ reason: "chat-request-conflict" });
  gate.resolve();
  await client.event(chat("final"));
  expect((await send(client, "k1", "hello")).payload["status"]).toBe("ok");
  expect(gateway.sends.map((one) => one.outcome)).toEqual(["started", "in_flight", "conflict", "ok"]);
  expect(gateway.modelCalls).toHaveLength(1);
  const gone = await send(client, "k2", "hello", "agent:nobody:app");
  expect(gone.error?.["message"]).toBe('Agent "nobody" no longer exists in configuration');
});

test("a second send is steered in and answered afterwards", async () => {
  const gate = Promise.withResolvers<void>();
  const gateway = await start({
    answer: async function* (turn) {
      if (turn.text === "one") yield { wait: gate.promise };
      yield { text: `re ${turn.text}` };
    },
  });
  const client = await connect(gateway);
  await send(client, "k1", "one");
  await send(client, "k2", "two");
  expect((await client.event(chat("final", "k2"))).payload["message"]).toBeUndefined();
  gate.resolve();
  const answer = await client.event((frame) => chat("final")(frame) && textOf(frame) === "re two");
  const runId = String(answer.payload["runId"]);
  expect(runId).not.toBe("k2");
  expect(summary(await rowsOf(client))).toEqual(["user k1:user", "assistant k1", "user k2:user", `assistant ${runId}`]);
});

test("a forgotten U+2060 shows: commands and stop words never reach the model", async () => {
  const gateway = await start();
  const client = await connect(gateway);
  await send(client, "k1", "/status");
  expect(textOf(await client.event(chat("final", "k1")))).toContain("command");
  expect((await send(client, "k2", "Please stop!")).payload).toEqual({ ok: true, aborted: false, runIds: [] });
  expect(gateway.modelCalls).toHaveLength(0);
  await send(client, "k3", "tell me /status now");
  await client.event(chat("final", "k3"));
  await send(client, "k4", "\u2060tell me \u2060/status now");
  await client.event(chat("final", "k4"));
  await send(client, "k5", "\u2060stop");
  await client.event(chat("final", "k5"));
  expect(gateway.modelCalls.map((one) => one.text)).toEqual(["tell me now", "tell me /status now", "stop"]);
});

test("abort keeps the partial text; errors carry the reason and come twice", async () => {
  const gateway = await start({
    answer: async function* (turn) {
      yield { text: "so far " };
      if (turn.text === "fail") yield { error: "rate_limit" };
      yield { hang: true };
    },
  });
  const client = await connect(gateway);
  await send(client, "k1", "long");
  await client.event(chat("delta", "k1"));
  const inFlight = (await client.call("chat.history", { sessionKey: key })).payload["inFlightRun"];
  expect(inFlight).toMatchObject({ runId: "k1", text: "so far" });
  const aborted = await client.call("chat.abort", { sessionKey: key, runId: "k1" });
  expect(aborted.payload).toEqual({ ok: true, aborted: true, runIds: ["k1"] });
  expect(textOf(await client.event(chat("aborted", "k1")))).toBe("so far");
  expect((await rowsOf(client)).at(-1)).toMatchObject({ model: "gateway-injected", openclawAbort: { origin: "rpc" } });
  expect((await send(client, "k1", "long")).payload["status"]).toBe("timeout");
  await send(client, "k2", "fail");
  await client.event((frame) => chat("error", "k2")(frame) && frame.payload["agentId"] === undefined);
  const [first, second] = client.events.filter(chat("error", "k2"));
  expect(first!.payload["errorDetail"]).toMatchObject({ failoverReason: "rate_limit" });
  expect(second!.payload["errorDetail"]).toBeUndefined();
  expect((await rowsOf(client)).at(-1)!.idempotencyKey).toBe("k2:terminal-error");
});

test("tools glue the texts, each model call has its own usage", async () => {
  const gateway = await start({
    answer: async function* () {
      yield { text: "Let me write. " };
      yield { tool: "write" };
      yield { retrying: true };
      yield { text: "Done." };
    },
  });
  const client = await connect(gateway);
  await send(client, "k1", "note it");
  expect(textOf(await client.event(chat("final", "k1")))).toBe("Let me write.Done.");
  const retrying = (frame: Frame) => (frame.payload["data"] as Json | undefined)?.["phase"] === "retrying";
  expect(client.events.filter(retrying)).toHaveLength(1);
  const rows = await rowsOf(client);
  expect(rows.map((row) => row.role)).toEqual(["user", "assistant", "assistant", "toolResult", "assistant"]);
  expect(rows.filter((row) => row.usage)).toHaveLength(2);
  expect(rows[1]!.__openclaw.id).toBe(rows[2]!.__openclaw.id);
});

test("a scoped connection gets only the sessions it subscribed to", async () => {
  const gateway = await start();
  const scoped = await connect(gateway, { caps: ["session-scoped-events"] });
  const other = "agent:agent_b:app";
  expect((await scoped.call("sessions.messages.subscribe", { key: other })).payload).toEqual({
    subscribed: true,
    key: other,
  });
  await send(scoped, "k1", "one");
  await send(scoped, "k2", "two", other);
  await scoped.event(chat("final", "k2"));
  expect(scoped.events.filter((frame) => frame.payload["sessionKey"] === key)).toEqual([]);
  expect(scoped.events.filter((frame) => frame.event === "session.message")).toHaveLength(2);
});

test("the file is applied on change, an invalid one is skipped", async () => {
  const gateway = await start();
  const client = await connect(gateway);
  const before = (await client.call("config.get", {})).payload;
  expect(before["configRevisionHash"]).toBe(before["appliedConfigHash"]);
  writeRaw(gateway.dir, "{nope");
  while (gateway.rejectedConfigs.length === 0) await Bun.sleep(2);
  expect(gateway.agents).toEqual(["agent_a", "agent_b"]);
  writeConfig(gateway.dir, ["agent_b", "agent_c"]);
  const changed = await client.event((frame) => frame.event === "config.changed");
  const after = (await client.call("config.get", {})).payload;
  expect(after).toMatchObject({
    valid: true,
    hash: changed.payload["hash"],
    appliedConfigHash: after["configRevisionHash"]!,
  });
  expect(after["hash"]).not.toBe(before["hash"]);
  const listed = (await client.call("agents.list", {})).payload["agents"] as { id: string }[];
  expect(listed.map((agent) => agent.id)).toEqual(["agent_b", "agent_c"]);
});

test("agents.delete needs admin, moves to the trash and buries the id", async () => {
  const gateway = await start();
  const client = await connect(gateway);
  const refused = await client.call("agents.delete", { agentId: "agent_a" });
  expect(refused.error?.["details"]).toMatchObject({ code: "MISSING_SCOPE", missingScope: "operator.admin" });
  const admin = await connect(gateway, { scopes: [...both, "operator.admin"] });
  mkdirSync(join(gateway.dir, "workspaces", "agent_a"), { recursive: true });
  await send(client, "k1", "secret phrase");
  await client.event(chat("final", "k1"));
  const done = await admin.call("agents.delete", { agentId: "agent_a", deleteFiles: true });
  expect(done.payload).toMatchObject({ ok: true, agentId: "agent_a", failed: [] });
  expect(existsSync(join(gateway.dir, "workspaces", "agent_a"))).toBe(false);
  expect(readFileSync(join(gateway.dir, "openclaw.json"), "utf8")).not.toContain("agent_a");
  expect((await client.call("chat.history", { sessionKey: key })).error?.["code"]).toBe("UNAVAILABLE");
  const { bootId } = gateway;
  writeConfig(gateway.dir, ["agent_a", "agent_b"]);
  expect(await client.closed).toBe(1012);
  expect(gateway.bootId).not.toBe(bootId);
});

test("a death in mid-run leaves the user's row; the key is known again after the restart", async () => {
  const first = await start({ answer: hanging });
  const client = await connect(first);
  await send(client, "k1", "hello");
  await client.event(chat("delta"));
  const second = keep(await first.restart({ answer: (turn) => echoOf(turn.text) }));
  expect(await client.closed).toBe(1006);
  expect(second.port).toBe(first.port);
  const again = await connect(second);
  expect(summary(await rowsOf(again))).toEqual(["user k1:user"]);
  expect((await send(again, "k1", "other")).error?.["details"]).toEqual({ reason: "chat-request-conflict" });
  await send(again, "k1", "hello");
  await again.event(chat("final", "k1"));
  expect(summary(await rowsOf(again))).toEqual(["user k1:user", "assistant k1"]);
  expect(second.sends.map((one) => one.outcome)).toEqual(["started", "conflict", "started"]);
});

test("with resumeInterrupted the gateway goes on by itself, and the old key fails", async () => {
  const first = await start({ answer: hanging });
  const client = await connect(first);
  await send(client, "k1", "hello");
  await client.event(chat("delta"));
  const second = keep(await first.restart({ resumeInterrupted: true, answer: (turn) => echoOf(turn.text) }));
  const again = await connect(second);
  while (second.running.length > 0) await Bun.sleep(1);
  const rows = await rowsOf(again);
  expect(rows.map((row) => row.role)).toEqual(["user", "user", "assistant"]);
  expect(rows[1]!.provenance).toMatchObject({ sourceTool: "main_session_restart_recovery" });
  await send(again, "k1", "hello");
  expect((await again.event(chat("error", "k1"))).payload["errorDetail"]).toBeUndefined();
});

test("held and lost sends, dropped sockets, shutdown", async () => {
  const gateway = await start();
  const client = await connect(gateway);
  gateway.holdSends(true);
  const held = send(client, "k1", "hello");
  await client.event(chat("final", "k1"));
  gateway.holdSends(false);
  expect((await held).payload["status"]).toBe("started");
  gateway.holdSends("lost");
  void send(client, "k2", "hello");
  while (gateway.sends.length < 2) await Bun.sleep(1);
  expect(gateway.modelCalls).toHaveLength(1);
  gateway.dropConnections();
  expect(await client.closed).toBe(1006);
  const last = await connect(gateway);
  await gateway.shutdown();
  expect(await last.closed).toBe(1012);
  expect(last.events.at(-1)).toMatchObject({ event: "shutdown", payload: { reason: "gateway stopping" } });
});

async function* hanging() {
  yield { text: "half" };
  yield { hang: true as const };
}

async function* echoOf(text: string) {
  yield { text: `Echo: ${text}` };
}
