import { afterEach, expect, test } from "bun:test";
import type { FakeAnswer } from "../fakes/gateway.ts";
import { isAnswer, makeAssistant, makeUser, openChat, type Chat, type Json, type TestUser } from "../factories.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";
import { openRawChat } from "./rawChat.ts";

let reef: TestReef;
const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
  await reef.stop();
});

function gated(): { answer: FakeAnswer; open: () => void } {
  const { promise, resolve: open } = Promise.withResolvers<void>();
  const answer: FakeAnswer = async function* () {
    yield { text: "First part, " };
    yield { wait: promise };
    yield { text: "second part." };
  };
  return { answer, open };
}

async function talk(overrides: Record<string, string> = {}): Promise<{ user: TestUser; assistant: Json; chat: Chat }> {
  reef = await startTestReef(overrides);
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  await until("it is awake", async () => {
    const rows = await reef.sql`select 1 from assistants where id = ${assistant.id} and state = 'awake'`;
    return rows.length === 1;
  });
  return { user, assistant, chat: await openChat(reef, user.token, assistant.agent_id) };
}

test("stop between the claim and the send begins nothing at the gateway; the next message is answered", async () => {
  const { chat } = await talk();
  const held = Promise.withResolvers<void>();
  const guard = reef.deps.workspaces.guard.bind(reef.deps.workspaces);
  reef.deps.workspaces.guard = async (settings) => {
    await held.promise;
    return guard(settings);
  };
  chat.say("first");
  await until(
    "it is claimed",
    async () => (await reef.sql`select 1 from turns where status = 'dispatched'`).length > 0,
  );
  chat.send({ type: "stop" });
  await until("the stop is heard", async () => (await reef.sql`select 1 from turns where stop_requested`).length > 0);
  held.resolve();
  expect(await chat.next("its end", isAnswer)).toMatchObject({ finish: "stopped", content: "" });
  expect(reef.gateway.running.length).toBe(0);
  chat.say("second");
  await until("the second is answered", () => chat.frames.filter(isAnswer).length === 2);
  expect(chat.frames.filter(isAnswer)[1]).toMatchObject({ finish: "complete", content: "Echo: second" });
});

test("stops at any moment after the message leave no run behind", async () => {
  const { chat } = await talk();
  for (let delayMs = 0; delayMs < 12; delayMs++) {
    const { answer, open } = gated();
    reef.gateway.setAnswer(answer);
    const ended = chat.frames.filter(isAnswer).length;
    chat.say("long");
    await Bun.sleep(delayMs);
    chat.send({ type: "stop" });
    await until("it has ended", () => chat.frames.filter(isAnswer).length === ended + 1);
    expect(reef.gateway.running.length).toBe(0);
    open();
  }
});

test("stop after a take-over keeps what was said, and it is charged", async () => {
  const { user, assistant, chat } = await talk();
  const { answer, open } = gated();
  closers.push(open);
  reef.gateway.setAnswer(answer);
  chat.say("long");
  await chat.next("the first part", (frame) => frame.type === "chunk");
  const second = await startProcess(reef.env);
  closers.push(() => second.stop());
  await reef.stopProcess();
  reef.sql = second.deps.sql;
  const again = await openChat(second, user.token, assistant.agent_id, "&after_seq=0");
  await again.next("the text so far", (frame) => frame.type === "chunk");
  again.send({ type: "stop" });
  expect(await again.next("its end", isAnswer)).toMatchObject({ finish: "stopped", content: "First part," });
  expect((await reef.sql`select status from usage_logs`).map((row) => row["status"])).toEqual(["committed"]);
});

test("a run that the gateway ends before the model has begun is sent once more; twice is a failure", async () => {
  const { user, chat } = await talk();
  let failures = 1;
  reef.gateway.setAnswer(async function* (turn) {
    if (failures-- > 0) yield { error: "unexplained" };
    else yield { text: `Echo: ${turn.text}` };
  });
  chat.say("hello");
  expect(await chat.next("the answer", isAnswer)).toMatchObject({ finish: "complete", content: "Echo: hello" });
  failures = 2;
  chat.say("again");
  await until("it has ended", () => chat.frames.filter(isAnswer).length === 2);
  expect(chat.frames.filter(isAnswer)[1]).toMatchObject({ finish: "error" });
  const ledger = await reef.sql`select status from usage_logs where user_id = ${user.id} order by created_at`;
  expect(ledger.map((row) => row["status"])).toEqual(["committed", "released"]);
});

test("a model that says what no database can hold is answered without it", async () => {
  const { chat } = await talk();
  reef.gateway.setAnswer(async function* () {
    yield { text: "a\u0000b" };
    yield { text: "c\uD83D" };
    yield { text: "\uDE00." };
  });
  chat.say("hi");
  const answer = await chat.next("the answer", isAnswer);
  expect(answer).toMatchObject({ finish: "complete", content: "abc\u{1F600}." });
  const text = chat.frames.filter((frame) => frame.type === "chunk").map((chunk) => chunk.content);
  expect(text.join("")).toBe("abc\u{1F600}.");
});

test("of 25 sockets that a person opens at once ten live, fifteen are closed with 4429", async () => {
  reef = await startTestReef();
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const chats = await Promise.all(Array.from({ length: 25 }, () => openChat(reef, user.token, assistant.agent_id)));
  await until("fifteen are closed", () => chats.filter((chat) => chat.closed?.code === 4429).length === 15);
  expect(chats.filter((chat) => !chat.closed).length).toBe(10);
});

test("a flood from one socket is throttled, then closed; the person's other socket does not notice", async () => {
  const { user, assistant, chat } = await talk();
  const other = await openChat(reef, user.token, assistant.agent_id);
  for (let i = 0; i < 1_000; i++) chat.send({ type: "resume", after_seq: 0 });
  await until("it is closed", () => chat.closed);
  expect(chat.closed).toMatchObject({ code: 4429, reason: "too many frames" });
  expect(chat.frames.some((frame) => frame.code === "too_many_frames" && frame.retry_after === 1)).toBe(true);
  other.say("hello");
  await other.next("the answer", isAnswer);
});

test("while the event loop is late new sockets are told when to come back, and those that are open go on", async () => {
  const { user, assistant, chat } = await talk();
  reef.deps.loopDelay.read = () => ({ maxMs: 900, meanMs: 400 });
  const response = await fetch(`${reef.url}/ws/chat?agent_id=${assistant.agent_id}&token=${user.token}`, {
    headers: {
      Connection: "Upgrade",
      Upgrade: "websocket",
      "Sec-WebSocket-Version": "13",
      "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    },
  });
  expect([response.status, ((await response.json()) as Json).code]).toEqual([503, "service_unavailable"]);
  expect(Number(response.headers.get("retry-after"))).toBeGreaterThan(1);
  chat.say("hello");
  await chat.next("the answer", isAnswer);
});

test("who is too far behind, or ahead, is told to load the history, and follows from there", async () => {
  const { user, assistant, chat } = await talk();
  await reef.sql.begin(async (sql) => {
    await sql`insert into turns (id, assistant_id, user_id, gateway_id, seq, status, finished_at)
      select gen_random_uuid(), ${assistant.id}, ${user.id}, 'main', 2 * n - 1, 'done', now() from generate_series(1, 600) n`;
    await sql`insert into messages (id, assistant_id, user_id, turn_id, seq, role, content, finish)
      select gen_random_uuid(), ${assistant.id}, ${user.id}, t.id, t.seq + r.n, r.role, 'x', 'complete'
      from turns t, (values (0, 'user'), (1, 'assistant')) as r (n, role) where t.assistant_id = ${assistant.id}`;
    await sql`update assistants set last_seq = 1200, message_count = 1200 where id = ${assistant.id}`;
  });
  const behind = await openChat(reef, user.token, assistant.agent_id, "&after_seq=10");
  expect(await behind.next("a reset", (frame) => frame.type === "reset")).toMatchObject({
    last_seq: 1200,
    reason: "too_far_behind",
  });
  const ahead = await openChat(reef, user.token, assistant.agent_id, "&after_seq=5000");
  expect(await ahead.next("a reset", (frame) => frame.type === "reset")).toMatchObject({ reason: "ahead" });
  const near = await openChat(reef, user.token, assistant.agent_id, "&after_seq=200");
  await until("it has the thousand", () => near.frames.filter((frame) => frame.type === "message").length === 1000);
  chat.send({ type: "resume", after_seq: 9 });
  await chat.next("a reset", (frame) => frame.type === "reset");
  chat.say("hello");
  for (const each of [behind, ahead, near, chat]) {
    await each.next("the answer", (frame) => isAnswer(frame) && frame.seq === 1202);
    expect(each.frames.filter((frame) => frame.type === "message").at(-1)).toMatchObject({ seq: 1202 });
  }
});

test("a session revoked while nobody listened ends its sockets when somebody listens again", async () => {
  const { user, chat } = await talk();
  await reef.sql`update refresh_tokens set revoked_at = now() where user_id = ${user.id}`;
  await reef.sql`select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and query like 'listen%'`;
  await until("the socket is closed", () => chat.closed);
  expect(chat.closed).toMatchObject({ code: 1008 });
});

test("a slow reader is not waited for, and has everything in order when it reads again", async () => {
  const { user, assistant, chat } = await talk();
  const big = "x".repeat(200_000);
  let n = 0;
  reef.gateway.setAnswer(async function* () {
    yield { text: `${n++}:${big}` };
  });
  const slow = await openRawChat(reef.url, user.token, assistant.agent_id);
  closers.push(() => slow.destroy());
  slow.pause();
  for (let i = 0; i < 12; i++) {
    chat.say(`message ${i}`);
    await until("it is answered", () => chat.frames.filter(isAnswer).length === i + 1);
  }
  slow.resume();
  await until("the slow one has it all", () => slow.messages().length === 24, 20_000);
  expect(slow.messages().map((message) => message.seq)).toEqual(Array.from({ length: 24 }, (_, i) => i + 1));
  expect(slow.messages().map((message) => message.content)).toEqual(
    chat.frames.filter((frame) => frame.type === "message").map((frame) => frame.content),
  );
});
