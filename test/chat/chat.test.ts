import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import type { FakeAnswer } from "../fakes/gateway.ts";
import { isAnswer, makeAssistant, makeUser, openChat, type Chat, type Json, type TestUser } from "../factories.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";

let reef: TestReef;
const echo: FakeAnswer = async function* (turn) {
  for (const word of `Echo: ${turn.text}`.split(/(?= )/)) yield { text: word };
};
beforeAll(async () => void (reef = await startTestReef({ TURN_FIRST_TEXT_MS: "1500", CHAT_PING_MS: "2000" })));
afterEach(() => reef.gateway.setAnswer(echo));
afterAll(() => reef.stop());

async function talk(): Promise<{ user: TestUser; assistant: Json; chat: Chat }> {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  return { user, assistant, chat: await openChat(reef, user.token, assistant.agent_id) };
}
const usedBy = async (user: TestUser) =>
  (await reef.sql`select coalesce(sum(text_messages), 0)::int as n from daily_usage where user_id = ${user.id}`)[0]![
    "n"
  ];
const ledgerOf = async (user: TestUser) =>
  (await reef.sql`select status, count(*)::int as n from usage_logs where user_id = ${user.id} group by status`).map(
    (row) => [row["status"], row["n"]],
  );
const history = async (user: TestUser, id: string) =>
  (await user.call("GET", `/api/assistants/${id}/messages?after_seq=0&limit=200`)).body.items;

/** A model that writes the first part, waits for the gate, then the second. */
function gated(): { answer: FakeAnswer; open: () => void } {
  const gate = Promise.withResolvers<void>();
  const answer: FakeAnswer = async function* () {
    yield { text: "First part, " };
    yield { wait: gate.promise };
    yield { text: "second part." };
  };
  return { answer, open: gate.resolve };
}

test("a message is acknowledged, answered in chunks that join to the stored text, charged once", async () => {
  const { user, assistant, chat } = await talk();
  const clientId = chat.say("hello there");
  const answer = await chat.next("the answer", isAnswer);
  expect(chat.frames[0].type).toBe("connected");
  expect(chat.frames.find((frame) => frame.type === "ack")).toMatchObject({ client_id: clientId, seq: 1 });
  const chunks = chat.frames.filter((frame) => frame.type === "chunk");
  let offset = 0;
  for (const chunk of chunks) {
    expect(chunk.offset).toBe(offset);
    offset += chunk.content.length;
  }
  expect(chunks.map((chunk) => chunk.content).join("")).toBe("Echo: hello there");
  expect(answer).toMatchObject({
    content: "Echo: hello there",
    seq: 2,
    finish: "complete",
    agentId: assistant.agent_id,
  });
  await chat.next("usage", (frame) => frame.type === "usage" && frame.text_messages.used === 1);
  expect(await ledgerOf(user)).toEqual([["committed", 1]]);
});

test("the same client_id is the same message; another text under it is refused", async () => {
  const { user, assistant, chat } = await talk();
  const clientId = chat.say("once");
  chat.say("once", clientId);
  await until("two acks", () => chat.frames.filter((frame) => frame.type === "ack").length === 2);
  const [first, second] = chat.frames.filter((frame) => frame.type === "ack");
  expect(second).toEqual(first);
  chat.say("twice", clientId);
  await chat.next("a refusal", (frame) => frame.type === "error" && frame.code === "client_id_conflict");
  await chat.next("the answer", isAnswer);
  expect((await history(user, assistant.id)).length).toBe(2);
  expect(await usedBy(user)).toBe(1);
});

test("two quick messages are answered in their order", async () => {
  const { user, assistant, chat } = await talk();
  chat.say("one");
  chat.say("two");
  await until("both answers", () => chat.frames.filter(isAnswer).length === 2);
  expect(chat.frames.filter(isAnswer).map((frame) => frame.content)).toEqual(["Echo: one", "Echo: two"]);
  expect((await history(user, assistant.id)).map((message: Json) => message.seq)).toEqual([1, 2, 3, 4]);
});

test("two devices see the same conversation; one that comes in the middle gets the text so far, without gap or overlap", async () => {
  const { user, assistant, chat } = await talk();
  const { answer, open } = gated();
  reef.gateway.setAnswer(answer);
  chat.say("long");
  await chat.next("the first part", (frame) => frame.type === "chunk");
  const late = await openChat(reef, user.token, assistant.agent_id, "&after_seq=0");
  await late.next("the text so far", (frame) => frame.type === "chunk");
  open();
  await Promise.all([chat.next("the answer", isAnswer), late.next("the answer", isAnswer)]);
  const textOf = (seen: Chat) =>
    seen.frames
      .filter((frame) => frame.type === "chunk")
      .reduce((text, chunk) => (expect(chunk.offset).toBe(text.length), text + chunk.content), "");
  expect([textOf(chat), textOf(late)]).toEqual(["First part, second part.", "First part, second part."]);
  const messages = (seen: Chat) => seen.frames.filter((frame) => frame.type === "message");
  expect(messages(late)).toEqual(messages(chat));
});

test("stop keeps what was said and marks it; a queued turn is stopped without charge", async () => {
  const { user, chat } = await talk();
  const { answer, open } = gated();
  reef.gateway.setAnswer(answer);
  chat.say("long");
  await chat.next("the first part", (frame) => frame.type === "chunk");
  chat.say("queued");
  await until("both are accepted", () => chat.frames.filter((frame) => frame.type === "ack").length === 2);
  chat.send({ type: "stop" });
  await until("both have ended", () => chat.frames.filter(isAnswer).length === 2);
  open();
  const ends = chat.frames.filter(isAnswer).map((frame) => [frame.finish, frame.content.trim()]);
  expect(ends).toContainEqual(["stopped", "First part,"]);
  expect(ends).toContainEqual(["stopped", ""]);
  expect(await usedBy(user)).toBe(1);
});

describe("failures give the message back", () => {
  const cases: [string, FakeAnswer, string][] = [
    [
      "rate limit",
      async function* () {
        yield { error: "rate_limit" };
      },
      "assistant_unavailable",
    ],
    [
      "refused key",
      async function* () {
        yield { error: "auth" };
      },
      "assistant_unavailable",
    ],
    [
      "bad request",
      async function* () {
        yield { error: "format" };
      },
      "turn_failed",
    ],
    [
      "silence until the budget",
      async function* () {
        yield { hang: true };
      },
      "turn_failed",
    ],
  ];
  for (const [name, answer, code] of cases) {
    test(name, async () => {
      const { user, chat } = await talk();
      reef.gateway.setAnswer(answer);
      chat.say("hello");
      const error = await chat.next("an error", (frame) => frame.type === "error");
      expect(error.code).toBe(code);
      expect(await chat.next("its row", isAnswer)).toMatchObject({ finish: "error" });
      expect([await usedBy(user), await ledgerOf(user)]).toEqual([0, [["released", 1]]]);
      reef.gateway.setAnswer(echo);
      chat.say("again");
      await chat.next("an answer", (frame) => isAnswer(frame) && frame.finish === "complete");
    });
  }
});

test("a lost gateway connection in mid-answer: answered once, nothing sent twice", async () => {
  const { user, assistant, chat } = await talk();
  const { answer, open } = gated();
  reef.gateway.setAnswer(answer);
  chat.say("long");
  await chat.next("the first part", (frame) => frame.type === "chunk");
  const calls = reef.gateway.modelCalls.length;
  reef.gateway.dropConnections();
  await until("it is connected again", () => reef.deps.gateway.isReady());
  open();
  expect(await chat.next("the answer", isAnswer)).toMatchObject({
    content: "First part, second part.",
    finish: "complete",
  });
  expect(reef.gateway.modelCalls.length).toBe(calls);
  expect((await history(user, assistant.id)).length).toBe(2);
  expect(await ledgerOf(user)).toEqual([["committed", 1]]);
});

describe("bad frames", () => {
  test("each gets its error, the socket lives, nothing is stored", async () => {
    const { user, assistant, chat } = await talk();
    const bad: [unknown, string][] = [
      ["{", "invalid_frame"],
      [new Uint8Array([1, 2, 3]), "invalid_frame"],
      [{ type: "dance" }, "invalid_frame"],
      [{ type: "message", content: "x", extra: 1 }, "invalid_frame"],
      [{ type: "message", content: 5 }, "invalid_frame"],
      [{ type: "message", content: "" }, "invalid_frame"],
      [{ type: "message", content: "x".repeat(32_001) }, "message_too_long"],
      [{ type: "message", content: "a\u0000b" }, "validation_failed"],
      [{ type: "auth", token: "nonsense" }, "unauthorized"],
    ];
    for (const [frame] of bad) chat.send(frame);
    await until("every error came", () => chat.frames.filter((frame) => frame.type === "error").length === bad.length);
    expect(chat.frames.filter((frame) => frame.type === "error").map((frame) => frame.code)).toEqual(
      bad.map(([, code]) => code),
    );
    const clientId = chat.say("x".repeat(32_001));
    await chat.next("it is told which message was refused", (frame) => frame.client_id === clientId);
    chat.send({ type: "ping" });
    await chat.next("pong", (frame) => frame.type === "pong");
    expect([(await history(user, assistant.id)).length, await usedBy(user)]).toEqual([0, 0]);
  });

  test("64 KB and one byte closes with 1009", async () => {
    const { chat } = await talk();
    chat.send("x".repeat(64 * 1024 + 1));
    await until("it is closed", () => chat.closed);
    expect(chat.closed!.code).toBe(1009);
  });

  test("bad token and somebody else's assistant close with 1008, the eleventh socket with 4429", async () => {
    const { user, assistant } = await talk();
    const stranger = await makeUser(reef);
    for (const token of ["nonsense", stranger.token])
      expect((await openChat(reef, token, assistant.agent_id)).closed?.code).toBe(1008);
    expect((await openChat(reef, user.token, "%00")).closed?.code).toBe(1008);
    for (let i = 0; i < 9; i++) await openChat(reef, user.token, assistant.agent_id);
    expect((await openChat(reef, user.token, assistant.agent_id)).closed?.code).toBe(4429);
  });
});
