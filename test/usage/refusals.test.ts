import { afterAll, beforeAll, expect, test } from "bun:test";
import { getUsage, type Amounts } from "../../src/db/usage.ts";
import { RATE_LIMIT_HEADERS } from "../../src/http/metered.ts";
import { newId } from "../../src/lib/ids.ts";
import { createServer } from "../../src/server.ts";
import { ChatHub } from "../../src/services/chatHub.ts";
import { findCheapRefusal, isRefused, renderRefusal, reserveUsage } from "../../src/services/usage.ts";
import {
  idle,
  isAnswer,
  makeAssistant,
  makeUser,
  openChat,
  type Answer,
  type Json,
  type TestUser,
} from "../factories.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";

/** What people and their apps are told: headers, refusals, frames; and what a cheap "no" costs. */

let reef: TestReef;
let second: Awaited<ReturnType<typeof startProcess>>;
beforeAll(async () => {
  reef = await startTestReef();
  second = await startProcess(reef.env);
});
afterAll(async () => {
  await second.stop();
  await reef.stop();
});

async function take(user: TestUser, amounts: Partial<Amounts>) {
  return reef.deps.sql.begin(async (sql) => {
    const usage = await getUsage(sql, user.id);
    return reserveUsage(reef.deps, sql, { userId: user.id, key: newId(), usage, amounts, expiresInMs: null });
  });
}
const post = (user: TestUser, assistant: Json, body: object = {}, headers = {}) =>
  user.call(
    "POST",
    `/api/assistants/${assistant.id}/messages`,
    { content: "hi", client_id: newId(), ...body },
    headers,
  );
/** Full, and Redis knows it. */
async function fill(user: TestUser, assistant: Json): Promise<Answer> {
  await take(user, { textMessages: 50 });
  const refused = await post(user, assistant);
  expect(refused.status).toBe(429);
  expect(await findCheapRefusal(reef.deps, user.id, { textMessages: 1 })).not.toBe(null);
  return refused;
}

/** That an answer tells how the day stands. */
async function expectHeaders(user: TestUser, answer: Answer) {
  const { plan, resetAt, limits, used } = await getUsage(reef.sql, user.id);
  expect(Object.keys(RATE_LIMIT_HEADERS).map((name) => [name, answer.headers.get(name)])).toEqual([
    ["X-RateLimit-Plan", plan],
    ["X-RateLimit-Text-Remaining", String(limits.textMessages - used.textMessages)],
    ["X-RateLimit-Voice-Remaining", String(limits.voiceInputSeconds - used.voiceInputSeconds)],
    ["X-RateLimit-Voice-Output-Remaining", String(limits.voiceOutputSeconds - used.voiceOutputSeconds)],
    ["X-RateLimit-TTS-Remaining", String(limits.ttsCharacters - used.ttsCharacters)],
    ["X-RateLimit-Reset", resetAt.toISOString()],
  ]);
}

test("every metered route: its headers when it refuses a request, of whatever status", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  await take(user, { textMessages: 3, voiceInputSeconds: 7, voiceOutputSeconds: 9, ttsCharacters: 11 });
  const { specs } = createServer(reef.deps, new ChatHub(reef.deps), idle, () => false);
  const routes = specs.filter((spec) => spec.metered);
  expect(routes.map(({ path }) => path)).toEqual(
    expect.arrayContaining(["/api/user/usage", "/api/assistants/:id/messages"]),
  );
  for (const { method, path } of routes) {
    const wrong: [string, unknown][] = [
      [path.replace(":id", assistant.id) + (method === "get" ? "?unknown=1" : ""), method === "get" ? undefined : "{"],
    ];
    if (path.includes(":id")) {
      wrong.push([path.replace(":id", "17"), {}]);
      wrong.push([path.replace(":id", newId()), { content: "hi", client_id: newId() }]);
    }
    for (const [address, body] of wrong) {
      const answer = await user.call(method.toUpperCase(), address, body);
      expect([address, answer.status >= 400 && answer.status < 500]).toEqual([address, true]);
      await expectHeaders(user, answer);
    }
  }
});

test("the headers of success, of a repeated message, of a kept answer, of a refusal", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const message = { client_id: newId() };
  for (const sent of [message, message]) await expectHeaders(user, await post(user, assistant, sent));
  const key = { "idempotency-key": newId() };
  for (const sent of [{ client_id: newId(), content: "once" }]) {
    const answers = [await post(user, assistant, sent, key), await post(user, assistant, sent, key)];
    expect(answers.map(({ status }) => status)).toEqual([202, 202]);
    expect(answers[1]!.body).toEqual(answers[0]!.body);
    for (const answer of answers) await expectHeaders(user, { ...answers[1]!, headers: answer.headers });
  }
  await expectHeaders(user, await user.call("GET", "/api/user/usage"));
  const refused = await take(user, { textMessages: 48 }).then(() => post(user, assistant));
  expect(refused.status).toBe(429);
  await expectHeaders(user, refused);
  // The same, said by Redis.
  await expectHeaders(user, await post(user, assistant));
});

test("a 429 says what of, how much, until when, what has more, and when to come back; the same whoever says it", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const before = Date.now();
  const answers = [await fill(user, assistant), await post(user, assistant)];
  const { resetAt } = await getUsage(reef.sql, user.id);
  for (const { status, body, headers } of answers) {
    expect([status, body]).toMatchObject([
      429,
      {
        code: "RATE_LIMITED",
        kind: "text_messages",
        limit: 50,
        used: 50,
        reset_at: resetAt.toISOString(),
        upgrade_to: "pro",
      },
    ]);
    expect(headers.get("retry-after")).toBe(String(body.retry_after));
    expect(body.retry_after).toBeLessThanOrEqual(Math.ceil((resetAt.getTime() - before) / 1000));
    expect(body.retry_after).toBeGreaterThanOrEqual(Math.ceil((resetAt.getTime() - Date.now()) / 1000));
  }
  // Of several kinds the one that does not fit; the largest plan has no larger one.
  await reef.sql`insert into subscriptions (user_id, plan) values (${user.id}, 'premium')`;
  const refused = await take(user, { ttsCharacters: 5, voiceOutputSeconds: 7_201 });
  expect(isRefused(refused) && renderRefusal(reef.deps, refused).extras).toMatchObject({
    kind: "voice_output_seconds",
    limit: 7_200,
    used: 0,
    upgrade_to: null,
  });
  expect(isRefused(refused) && renderRefusal(reef.deps, refused).code).toBe("voice_limit_reached");
});

test("a cheap no waits for nobody's locks and begins no transaction", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  await fill(user, assistant);
  const seconds = { voiceInputSeconds: 117 };
  await take(user, seconds);
  expect(isRefused(await take(user, { voiceInputSeconds: 4 }))).toBe(true);
  await reef.sql.begin(async (sql) => {
    // Whatever asked for a lock, or wrote, would wait for the end of this.
    await sql`select 1 from daily_usage where user_id = ${user.id} for update`;
    await sql`select 1 from assistants where user_id = ${user.id} for update`;
    await sql`select 1 from users where id = ${user.id} for update`;
    const answers = await Promise.all(Array.from({ length: 20 }, () => post(user, assistant)));
    expect(answers.map(({ status }) => status)).toEqual(Array(20).fill(429));
  });
  // Of voice Redis alone says it.
  const deaf = new Proxy(reef.deps.sql, {
    apply: () => expect.unreachable(),
    get: () => expect.unreachable(),
  });
  const refused = await findCheapRefusal({ ...reef.deps, sql: deaf }, user.id, { voiceInputSeconds: 5 });
  expect(refused).toMatchObject({ kind: "voiceInputSeconds", usage: { used: seconds, plan: "free" } });
  for (const amounts of [{ voiceInputSeconds: 3 }, { ttsCharacters: 1 }, {}])
    expect(await findCheapRefusal(reef.deps, user.id, amounts)).toBe(null);
});

test("what Redis knows of a full day changes no other answer: a repeated message, a paused, a foreign, a deleted assistant", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const foreign = await makeAssistant(await makeUser(reef));
  const message = { client_id: newId(), content: "the first" };
  const first = await post(user, assistant, message);
  expect(first.status).toBe(202);
  await take(user, { textMessages: 49 });
  expect((await post(user, assistant)).status).toBe(429);
  expect(await findCheapRefusal(reef.deps, user.id, { textMessages: 1 })).not.toBe(null);
  const again = await post(user, assistant, message);
  expect([again.status, again.body.message.id, again.body.turn.id]).toEqual([
    202,
    first.body.message.id,
    first.body.turn.id,
  ]);
  expect((await post(user, assistant, { ...message, content: "another" })).body.code).toBe("client_id_conflict");
  expect((await post(user, foreign)).body.code).toBe("assistant_not_found");
  const chat = await openChat(reef, user.token, assistant.agent_id);
  chat.say("the first", message.client_id);
  expect(await chat.next("the same ack", ({ type }) => type === "ack")).toMatchObject({
    message_id: first.body.message.id,
  });
  chat.close();
  await user.call("POST", `/api/assistants/${assistant.id}/pause`);
  expect((await post(user, assistant)).body.code).toBe("assistant_paused");
  await user.call("DELETE", `/api/assistants/${assistant.id}`);
  expect((await post(user, assistant)).body.code).toBe("assistant_not_found");
});

test("at 80 and 100 per cent every socket of the person hears of it, on all assistants and processes, over HTTP, too; and when something came back", async () => {
  const user = await makeUser(reef);
  await reef.sql`update plan_limits set assistants = 2 where plan = 'free'`;
  const assistants = [await makeAssistant(user), await makeAssistant(user)];
  const stranger = await makeUser(reef);
  const strange = await makeAssistant(stranger);
  const open = [reef, second].flatMap((process) =>
    assistants.map(({ agent_id }) => openChat(process, user.token, agent_id)),
  );
  const chats = await Promise.all(open);
  const other = await openChat(reef, stranger.token, strange.agent_id);
  const heard = (used: number) =>
    until(`all have heard of ${used}`, () =>
      chats.every(({ frames }) => frames.some(({ type, text_messages: n }) => type === "usage" && n.used === used)),
    );
  reef.gateway.setAnswer(async function* (turn) {
    if (turn.text === "fail") yield { error: "format" };
    yield { text: "yes" };
  });
  await take(user, { textMessages: 39 });
  await post(user, assistants[0]);
  await heard(40);
  await chats[0]!.next("the answer", isAnswer);
  await take(user, { textMessages: 9 });
  await post(user, assistants[1], { content: "fail" });
  await heard(50);
  // It failed, and came back: also the devices on the other assistant know.
  await heard(49);
  // A mark of another kind.
  await take(user, { ttsCharacters: 4_000 });
  await until("all have heard of the characters", () =>
    chats.every(({ frames }) =>
      frames.some(({ type, tts_characters: n }) => type === "usage" && n.used === 4_000 && n.limit === 5_000),
    ),
  );
  // A larger plan is told at once.
  await reef.sql`insert into subscriptions (user_id, plan) values (${user.id}, 'pro')`;
  await until("all have heard of the plan", () =>
    chats.every(({ frames }) => frames.some(({ type, text_messages: n }) => type === "usage" && n.limit === 500)),
  );
  expect(other.frames.filter(({ type }) => type === "usage")).toEqual([]);
  for (const chat of [...chats, other]) chat.close();
});
