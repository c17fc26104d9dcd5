import { afterEach, expect, test } from "bun:test";
import { listOpenAlarms } from "../../src/db/alarms.ts";
import { isAnswer, makeAssistant, makeUser, openChat, type Json } from "../factories.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";
import { startVoiceTown } from "./voiceTown.ts";

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** A Reef whose alarms are posted to a receiver. */
async function start(): Promise<{ reef: TestReef; told: Json[] }> {
  const told: Json[] = [];
  const receiver = Bun.serve({
    port: 0,
    async fetch(request) {
      told.push(await request.json());
      return new Response();
    },
  });
  closers.push(() => receiver.stop(true));
  const reef = await startTestReef({
    INVARIANTS_EVERY_MS: "100",
    ALARM_WEBHOOK_URL: `http://127.0.0.1:${receiver.port}/hook`,
  });
  closers.push(() => reef.stop());
  return { reef, told };
}
const openKeys = async (reef: TestReef) => (await listOpenAlarms(reef.sql)).map(({ key }) => key);

test("a violated invariant is told once while it lasts, by whichever process, and once when it is over", async () => {
  const { reef, told } = await start();
  const second = await startProcess(reef.env);
  closers.push(() => second.stop());
  const user = await makeUser(reef);
  const { id } = await makeAssistant(user);
  await reef.sql`update assistants set message_count = 5 where id = ${id}`;
  const count = async () =>
    (await reef.sql`select count from alarms where key = 'invariant:seq_gapless'`)[0]?.["count"] ?? 0;
  await until("it was seen several times", async () => (await count()) >= 2);
  expect(await openKeys(reef)).toEqual(["invariant:seq_gapless"]);
  await reef.sql`update assistants set message_count = 0 where id = ${id}`;
  await until("it is over", async () => (await openKeys(reef)).length === 0);
  await until("the end is told", () => told.length >= 2);
  expect(told.map((one) => [one.status, one.key, one.severity])).toEqual([
    ["firing", "invariant:seq_gapless", "critical"],
    ["resolved", "invariant:seq_gapless", "critical"],
  ]);
  expect(told[0].summary).toContain("1 of ");
}, 30_000);

test("a provider that refuses the gateway's key is an alarm until somebody is answered again", async () => {
  const { reef, told } = await start();
  reef.gateway.setAnswer(async function* (turn) {
    if (turn.text === "auth" || turn.text === "rate_limit") yield { error: turn.text };
    yield { text: "well" };
  });
  const user = await makeUser(reef);
  const chat = await openChat(reef, user.token, (await makeAssistant(user)).agent_id);
  const fail = async (reason: string) => {
    const before = chat.frames.filter((frame) => frame.type === "error").length;
    chat.say(reason);
    await until("it has failed", () => chat.frames.filter((frame) => frame.type === "error").length > before);
  };
  // What passes by itself is none.
  await fail("rate_limit");
  await fail("auth");
  await until("it is an alarm", async () => (await openKeys(reef)).length > 0);
  expect(await openKeys(reef)).toEqual(["model-provider:main"]);
  expect(told.map(({ status }) => status)).toEqual(["firing"]);
  chat.say("hello");
  await chat.next("the answer", isAnswer);
  await until("it is over", async () => (await openKeys(reef)).length === 0);
  await until("the end is told", () => told.length >= 2);
  expect(told.map(({ status }) => status)).toEqual(["firing", "resolved"]);
}, 30_000);

test("a refused key for voice is an alarm until a call goes well", async () => {
  const town = await startVoiceTown({ INVARIANTS_EVERY_MS: "100" });
  closers.push(() => town.stop());
  const user = await makeUser(town.reef);
  const speak = async () => (await user.call("POST", "/api/voice/speak", { text: "Hello." })).status;
  town.openai.audio.speak = () => [{ status: 401 }];
  expect(await speak()).toBe(503);
  await until("it is an alarm", async () => (await openKeys(town.reef)).includes("speech-provider"));
  town.reset();
  expect(await speak()).toBe(200);
  await until("it is over", async () => (await openKeys(town.reef)).length === 0);
}, 30_000);
