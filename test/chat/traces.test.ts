import { afterEach, expect, test } from "bun:test";
import { join } from "node:path";
import { startCollector, type CollectedSpan, type Collector } from "../fakes/collector.ts";
import { isAnswer, makeAssistant, makeUser, openChat, type Json, type TestUser } from "../factories.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";
import { startVoiceTown, fixture, KEY } from "../api/voiceTown.ts";

let collector: Collector;
const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

async function start(url?: string): Promise<{ reef: TestReef; user: TestUser; assistant: Json }> {
  collector = startCollector();
  closers.push(() => collector.stop());
  const reef = await startTestReef({ OTEL_EXPORTER_OTLP_ENDPOINT: url ?? collector.url });
  closers.push(() => reef.stop());
  return { reef, ...(await makePerson(reef)) };
}

async function makePerson(reef: TestReef): Promise<{ user: TestUser; assistant: Json }> {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  await until("it is awake", async () => {
    const rows = await reef.sql`select 1 from assistants where id = ${assistant.id} and state = 'awake'`;
    return rows.length === 1;
  });
  return { user, assistant };
}

const traceOf = (turnId: string) => turnId.replaceAll("-", "");
const partsOf = (turnId: string) => collector.spans.filter(({ traceId }) => traceId === traceOf(turnId));
const named = (spans: CollectedSpan[], name: string) => spans.filter((span) => span.name === name);
const untilTold = (turnId: string, parts: number) =>
  until("the trace is there", () => (partsOf(turnId).length >= parts ? partsOf(turnId) : null));

/** Each span's name under its parent's, sorted. */
function treeOf(spans: CollectedSpan[]): string[] {
  const nameOf = (id: string | null) => spans.find(({ spanId }) => spanId === id)?.name ?? id ?? "";
  return spans.map(({ parentId, name }) => `${nameOf(parentId)} > ${name}`).toSorted();
}

const TURN_PARTS = [
  "turn > gateway answer",
  "turn > gateway first text",
  "turn > gateway send",
  "turn > turn attempt",
  "turn > turn queued",
];

test("a message over the socket is one trace, the turn's, from the frame to the gateway; no text, address or token in it", async () => {
  const { reef, user, assistant } = await start();
  reef.gateway.setAnswer(async function* () {
    yield { text: "the secret answer" };
  });
  const chat = await openChat(reef, user.token, assistant.agent_id);
  chat.say("a secret question");
  const { turn_id: turnId } = await chat.next("the answer", isAnswer);
  const spans = await untilTold(turnId, 8);
  expect(treeOf(spans)).toEqual(
    [" > chat message", "chat message > accept message", "chat message > turn", ...TURN_PARTS].toSorted(),
  );
  const [turn] = named(spans, "turn");
  expect(turn!.attributes).toEqual({
    "reef.turn_id": turnId,
    "reef.assistant_id": assistant.id,
    "reef.user_id": user.id,
    "reef.gateway": "main",
    "reef.outcome": "done",
  });
  const inOrder = ["turn queued", "gateway send", "gateway first text", "gateway answer"];
  const starts = inOrder.map((name) => named(spans, name)[0]!.startMs);
  expect(starts).toEqual(starts.toSorted((a, b) => a - b));
  for (const span of spans) expect(span.endMs).toBeGreaterThanOrEqual(span.startMs);
  expect(spans.filter(({ failed }) => failed)).toEqual([]);
  const sent = collector.bodies.join("\n");
  for (const word of ["secret", user.email, user.token, user.refreshToken, user.password])
    expect(sent).not.toContain(word);
});

test("a request that sends a message is the root of its turn's trace; a foreign traceparent is linked to and decides nothing", async () => {
  const { user, assistant } = await start();
  const foreign = { traceId: "4bf92f3577b34da6a3ce929d0e0e4736", spanId: "00f067aa0ba902b7" };
  const path = `/api/assistants/${assistant.id}/messages`;
  const message = { content: "hello", client_id: crypto.randomUUID() };
  const traceparent = `00-${foreign.traceId}-${foreign.spanId}-01`;
  const { body } = await user.call("POST", path, message, { traceparent });
  const spans = await untilTold(body.turn.id, 8);
  const root = "POST /api/assistants/:id/messages";
  expect(treeOf(spans)).toEqual([` > ${root}`, `${root} > accept message`, `${root} > turn`, ...TURN_PARTS].toSorted());
  const [request] = named(spans, root);
  expect(request!.links).toEqual([foreign]);
  expect(request!.attributes).toMatchObject({
    "http.request.method": "POST",
    "http.route": "/api/assistants/:id/messages",
    "http.response.status_code": 202,
    "reef.user_id": user.id,
  });
  // Said again it is the same turn, and a request of its own.
  await user.call("POST", path, message, { traceparent: "00-not-valid-01" });
  await user.call("GET", `/api/assistants/${assistant.id}`);
  await until("both are told", () => named(collector.spans, "GET /api/assistants/:id").length > 0);
  const [, again] = named(collector.spans, root);
  expect(partsOf(body.turn.id).length).toBe(8);
  expect([again!.parentId, again!.links, again!.traceId === traceOf(body.turn.id)]).toEqual([null, [], false]);
  expect(collector.spans.filter(({ traceId }) => traceId === foreign.traceId)).toEqual([]);
  expect(collector.spans.filter(({ name }) => /readyz|livez|metrics/.test(name))).toEqual([]);
});

test("whichever process takes a turn over goes on with the same trace", async () => {
  const { reef, user, assistant } = await start();
  const { promise, resolve: open } = Promise.withResolvers<void>();
  closers.push(() => open());
  reef.gateway.setAnswer(async function* () {
    yield { text: "One, " };
    yield { wait: promise };
    yield { text: "two." };
  });
  const second = await startProcess(reef.env);
  closers.push(() => second.stop());
  const chat = await openChat(second, user.token, assistant.agent_id);
  second.deps.gateway.isReady = () => false;
  const { body } = await user.call("POST", `/api/assistants/${assistant.id}/messages`, {
    content: "hello",
    client_id: crypto.randomUUID(),
  });
  await chat.next("the first part", (frame) => frame.type === "chunk");
  second.deps.gateway.isReady = () => true;
  reef.deps.gateway.isReady = () => false;
  // As when the first one stood still for too long.
  await reef.sql`
    update turns set lease_owner = ${crypto.randomUUID()}, lease_until = now() - interval '1 second' where id = ${body.turn.id}`;
  await until("the other one has it", async () => {
    const rows =
      await reef.sql`select 1 from turns where id = ${body.turn.id} and lease_owner = ${second.deps.processId}`;
    return rows.length === 1;
  });
  open();
  await chat.next("the answer", isAnswer);
  const spans = await until("both have told", () => {
    const told = partsOf(body.turn.id);
    return named(told, "turn attempt").length === 2 && named(told, "turn").length === 1 ? told : null;
  });
  const attempts = named(spans, "turn attempt").toSorted((a, b) => a.startMs - b.startMs);
  expect(attempts.map(({ instance }) => instance)).toEqual([reef.deps.processId, second.deps.processId]);
  expect(attempts.map(({ attributes }) => attributes["reef.attempt"])).toEqual([1, 2]);
  const [turn] = named(spans, "turn");
  expect(turn!.instance).toBe(second.deps.processId);
  expect(attempts.map(({ parentId }) => parentId)).toEqual([turn!.spanId, turn!.spanId]);
});

test("calls for voice are parts of the request, or of the chat, that they are made for", async () => {
  collector = startCollector();
  closers.push(() => collector.stop());
  const town = await startVoiceTown({ OTEL_EXPORTER_OTLP_ENDPOINT: collector.url });
  closers.push(() => town.stop());
  const { reef } = town;
  const { user, assistant } = await makePerson(reef);
  const spoken = await user.call("POST", "/api/voice/speak", { text: "Good morning." });
  expect(spoken.status).toBe(200);
  await until("it is told", () => named(collector.spans, "POST /api/voice/speak").length > 0);
  const [request] = named(collector.spans, "POST /api/voice/speak");
  expect(treeOf(collector.spans.filter(({ traceId }) => traceId === request!.traceId))).toEqual([
    " > POST /api/voice/speak",
    "POST /api/voice/speak > speak",
  ]);
  const chat = await openChat(reef, user.token, assistant.agent_id);
  const audio = Buffer.from(fixture("cbr.mp3")).toString("base64");
  chat.send({ type: "voice", client_id: crypto.randomUUID(), audio, speak: true });
  const { turn_id: turnId } = await chat.next("it was spoken", (frame) => frame.type === "audio_end");
  const spans = await until("it is told", () => (named(partsOf(turnId), "speak").length > 0 ? partsOf(turnId) : null));
  const tree = treeOf(spans);
  for (const part of [" > chat voice", "chat voice > transcribe", "chat voice > accept message", "turn > speak"])
    expect(tree).toContain(part);
  expect(collector.bodies.join("\n")).not.toContain(KEY);
});

test("a collector that takes nothing costs one line in the log, and one when it is well again", async () => {
  const { reef, user, assistant } = await start();
  await until("it takes spans", () => collector.spans.length > 0);
  collector.refuse(true);
  const chat = await openChat(reef, user.token, assistant.agent_id);
  const said = (words: string) => reef.logs.filter((line) => line.includes(words)).length;
  for (let n = 1; n <= 3; n++) {
    const before = collector.requests;
    chat.say("hello");
    await until("it is answered", () => chat.frames.filter(isAnswer).length === n);
    await until("spans were sent", () => collector.requests > before);
  }
  await until("it is said", () => said("takes no traces") > 0);
  collector.refuse(false);
  chat.say("hello");
  await until("it is well again", () => said("takes traces again") > 0);
  expect([said("takes no traces"), said("takes traces again")]).toEqual([1, 1]);
});

test("where no collector is, everything goes on, and ends", async () => {
  const { reef, user, assistant } = await start("http://127.0.0.1:1");
  const chat = await openChat(reef, user.token, assistant.agent_id);
  chat.say("hello");
  await chat.next("the answer", isAnswer);
  await reef.stopProcess();
});

test("a collector that hangs holds up neither the chat nor the end of the process", async () => {
  const { reef, user, assistant } = await start();
  collector.hang();
  const chat = await openChat(reef, user.token, assistant.agent_id);
  chat.say("hello");
  await chat.next("the answer", isAnswer);
  await until("something was sent", () => collector.requests > 0);
  chat.say("again");
  await until("both are answered", () => chat.frames.filter(isAnswer).length === 2);
  await reef.stopProcess();
  // It ended though the collector has answered nothing to this moment.
  expect(collector.bodies).toEqual([]);
  expect(reef.logs.some((line) => line.includes('"closer":"traces"'))).toBe(true);
});

test("without the setting nothing is loaded and nothing is sent", async () => {
  const source = (name: string) => JSON.stringify(join(import.meta.dir, "../../src", name));
  const script = `
    const { createTraces } = await import(${source("clients/traces.ts")});
    const { createLog } = await import(${source("lib/log.ts")});
    const endpoint = process.argv.at(-1);
    const config = endpoint === "none" ? {} : { OTEL_EXPORTER_OTLP_ENDPOINT: endpoint };
    const traces = createTraces(config, createLog("silent"), "p");
    await traces.ready();
    traces.begin().end({ name: "x", attributes: {} });
    console.log(Object.keys(require.cache).filter((path) => path.includes("opentelemetry")).length);
    await traces.close();`;
  collector = startCollector();
  closers.push(() => collector.stop());
  const loaded = async (endpoint: string) => {
    const child = Bun.spawn([process.execPath, "--no-env-file", "-e", script, endpoint], { env: {}, stdout: "pipe" });
    return Number(await new Response(child.stdout).text());
  };
  expect(await loaded("none")).toBe(0);
  expect(collector.requests).toBe(0);
  expect(await loaded(collector.url)).toBeGreaterThan(0);
  expect(collector.spans.map(({ name }) => name)).toEqual(["x"]);
});
