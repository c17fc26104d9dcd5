import { afterEach, expect, test } from "bun:test";
import { listOpenAlarms } from "../../src/db/alarms.ts";
import { checkInvariants } from "../../src/services/invariants.ts";
import { watchInvariants } from "../../src/services/watchAlarms.ts";
import { isAnswer, makeAssistant, makeUser, openChat, type Json } from "../factories.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";
import { startVoiceTown } from "./voiceTown.ts";

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** A Reef whose alarms are posted to a receiver. */
async function start(everyMs = 100): Promise<{ reef: TestReef; told: Json[] }> {
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
    INVARIANTS_EVERY_MS: String(everyMs),
    ALARM_WEBHOOK_URL: `http://127.0.0.1:${receiver.port}/hook`,
  });
  closers.push(() => reef.stop());
  return { reef, told };
}
const openKeys = async (reef: TestReef) => (await listOpenAlarms(reef.sql)).map(({ key }) => key);

async function breakInvariant(reef: TestReef): Promise<() => Promise<void>> {
  const { id } = await makeAssistant(await makeUser(reef));
  const set = async (count: number) =>
    void (await reef.sql`update assistants set message_count = ${count} where id = ${id}`);
  await set(5);
  return () => set(0);
}

test("a violated invariant is an alarm, without anybody asking", async () => {
  const { reef, told } = await start(86_400_000);
  await breakInvariant(reef);
  // Its first look finds it: on a busy machine the next one would come much later.
  const watching = await startProcess({ ...reef.env, INVARIANTS_EVERY_MS: "100" });
  closers.push(() => watching.stop());
  await until("it is told", () => told.some(({ key }) => key === "invariant:seq_gapless"), 60_000);
  expect(told.find(({ key }) => key === "invariant:seq_gapless")).toMatchObject({
    status: "firing",
    key: "invariant:seq_gapless",
    severity: "critical",
  });
}, 90_000);

test("it is told once while it lasts, whichever process counts, and once when it is over; what is unchecked stays", async () => {
  const { reef, told } = await start(86_400_000);
  const second = await startProcess(reef.env);
  closers.push(() => second.stop());
  const look = async ({ deps }: Pick<TestReef, "deps">) =>
    watchInvariants(deps, await checkInvariants(deps, { patienceMs: 20_000, timeoutMs: 10_000 }));
  await look(reef);
  expect(await openKeys(reef)).toEqual([]);
  const mend = await breakInvariant(reef);
  for (const process of [reef, second, reef]) await look(process);
  expect(await openKeys(reef)).toEqual(["invariant:seq_gapless"]);
  await mend();
  const findings = await checkInvariants(reef.deps, { patienceMs: 20_000, timeoutMs: 10_000 });
  expect(findings.every(({ status }) => status === "ok")).toBe(true);
  const unchecked = findings.map((finding) => ({ ...finding, status: "unchecked" as const }));
  await watchInvariants(reef.deps, unchecked);
  expect(await openKeys(reef)).toEqual(["invariant:seq_gapless"]);
  for (const process of [second, reef]) await look(process);
  expect(await openKeys(reef)).toEqual([]);
  expect(told.map((one) => [one.status, one.key])).toEqual([
    ["firing", "invariant:seq_gapless"],
    ["resolved", "invariant:seq_gapless"],
  ]);
});

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
  await until("it is told", () => told.length > 0);
  expect(told.map(({ status }) => status)).toEqual(["firing"]);
  chat.say("hello");
  await chat.next("the answer", isAnswer);
  await until("it is over", async () => (await openKeys(reef)).length === 0);
  await until("the end is told", () => told.length >= 2);
  expect(told.map(({ status }) => status)).toEqual(["firing", "resolved"]);
});

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
});
