import { afterEach, expect, test } from "bun:test";
import { newId } from "../../src/lib/ids.ts";
import { isAnswer, openChat, type Chat, type Json } from "../factories.ts";
import { ApiProcess } from "../faults/apiProcess.ts";
import { Proxy } from "../faults/proxy.ts";
import { Script } from "../faults/script.ts";
import { createTestDatabase, startProcess, until } from "../harness.ts";
import {
  expectNothingLogged,
  history,
  isAck,
  isAudio,
  isEnd,
  isError,
  leave,
  makePerson,
  settled,
  speakInBinary,
  speakTo,
  startVoiceTown,
  usedBy,
  WEATHER,
  type Person,
  type VoiceTown,
} from "./voiceTown.ts";

let town: VoiceTown;
const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

async function start(overrides: Record<string, string> = {}): Promise<void> {
  town = await startVoiceTown(overrides);
  closers.push(() => town.close());
}

/** The provider answers each call when it is let; `heard` differs from call to call. */
function holdHearing(): { open: () => void } {
  const gate = Promise.withResolvers<void>();
  let calls = 0;
  town.provider.audio.hear = async function* ({ known }) {
    const text = calls++ === 0 ? known.text : `${known.text} (${calls})`;
    await gate.promise;
    yield { text, duration: known.seconds };
  };
  closers.push(() => gate.resolve());
  return { open: gate.resolve };
}
const asked = () => town.provider.audio.transcriptionCalls.length;

/** One message, one turn, one answer, charged once. */
async function expectOnce(person: Person, acks: Json[]): Promise<void> {
  const { reef } = town;
  expect(new Set(acks.map((ack) => JSON.stringify(ack))).size).toBe(1);
  await until("it is answered", async () => (await history(person)).length === 2);
  await settled(reef, person.user);
  expect(await usedBy(reef, person.user)).toEqual({ text: 1, heard: 3, spoken: 0, characters: 0 });
  const turns = await reef.sql`select status from turns where user_id = ${person.user.id}`;
  expect(turns.map((row) => row["status"])).toEqual(["done"]);
  const committed = await reef.sql`
    select kind from usage_logs where user_id = ${person.user.id} and status = 'committed' order by kind`;
  expect(committed.map((row) => row["kind"])).toEqual(["text_messages", "voice_input_seconds"]);
}

test("sent again to another process while the first listens: it waits for that one, also where seconds are short", async () => {
  await start();
  const { reef } = town;
  const other = await startProcess(reef.env);
  closers.push(() => other.stop());
  const person = await makePerson(reef);
  const { user, assistant, chat } = person;
  await leave(reef, user, { voice_input_seconds: 4 });
  const there = await openChat(other, user.token, assistant.agent_id);
  const { open } = holdHearing();
  const clientId = speakInBinary(chat, WEATHER);
  await until("it is listened to", () => asked() === 1);
  speakTo(there, WEATHER, {}, clientId);
  there.send({ type: "ping" });
  await there.next("pong", (frame) => frame.type === "pong");
  open();
  const acks = [await chat.next("the ack", isAck), await there.next("the ack", isAck)];
  expect([...chat.frames, ...there.frames].filter(isError)).toEqual([]);
  expect(new Set(acks.map((ack) => ack.seq))).toEqual(new Set([1]));
  await settled(reef, user);
  expect(await usedBy(reef, user)).toMatchObject({ text: 1, heard: 120 - 4 + 3 });
  expect([asked(), (await history(person)).length]).toEqual([1, 2]);
});

test("two processes that listen at the same time, without Redis between them: one message, charged once", async () => {
  await start();
  const { reef } = town;
  const other = await startProcess({ ...reef.env, REDIS_PREFIX: `${newId()}:` });
  closers.push(() => other.stop());
  const person = await makePerson(reef);
  const { user, assistant, chat } = person;
  const there = await openChat(other, user.token, assistant.agent_id);
  const { open } = holdHearing();
  const clientId = speakTo(chat, WEATHER);
  speakInBinary(there, WEATHER, {}, clientId);
  await until("both listen", () => asked() === 2);
  open();
  const acks = [await chat.next("the ack", isAck), await there.next("the ack", isAck)];
  await expectOnce(person, acks);
  expect(asked()).toBe(2);
  for (const device of [chat, there]) {
    await device.next("the answer", isAnswer);
    expect(device.frames.filter((frame) => frame.type === "message").length).toBe(2);
  }
  const ledger = await reef.sql`
    select status from usage_logs where user_id = ${user.id} and kind = 'voice_input_seconds' order by status`;
  expect(ledger.map((row) => row["status"])).toEqual(["committed", "released"]);
});

test("the process is killed while it listens: sent again it is answered once and charged once; what was reserved comes back", async () => {
  await start();
  const { reef } = town;
  const person = await makePerson(reef);
  const { user, assistant } = person;
  const doomed = new ApiProcess("doomed", reef.env, reef.dir);
  closers.push(() => doomed.kill());
  await doomed.start();
  const chat = await openChat(doomed, user.token, assistant.agent_id);
  const { open } = holdHearing();
  const clientId = speakInBinary(chat, WEATHER);
  await until("it is listened to", () => asked() === 1);
  await doomed.kill();
  await until("the socket is gone", () => chat.closed);
  open();
  const back = await openChat(reef, user.token, assistant.agent_id, "&after_seq=0");
  speakInBinary(back, WEATHER, {}, clientId);
  const ack = await back.next("the ack", isAck);
  await back.next("the answer", isAnswer);
  expect((await usedBy(reef, user))["heard"]).toBe(6);
  const [lost] = await reef.sql`
    update usage_logs set expires_at = now() - interval '1 second'
    where user_id = ${user.id} and status = 'reserved' and expires_at < now() + interval '3 minutes' returning id`;
  expect(lost).toBeDefined();
  await expectOnce(person, [ack]);
  expectNothingLogged(doomed.log(1000).split("\n"), [WEATHER.text]);
});

test("the process ends in order while it listens: it hears to the end, or leaves it to the next one", async () => {
  await start();
  const { reef } = town;
  const other = await startProcess(reef.env);
  closers.push(() => other.stop());
  const person = await makePerson(reef);
  const { user, assistant } = person;
  const chat = await openChat(other, user.token, assistant.agent_id);
  const { open } = holdHearing();
  const clientId = speakTo(chat, WEATHER);
  await until("it is listened to", () => asked() === 1);
  const stopping = other.stop();
  await until("the socket is sent away", () => chat.closed);
  const back: Chat = await openChat(reef, user.token, assistant.agent_id, "&after_seq=0");
  open();
  await stopping;
  speakTo(back, WEATHER, {}, clientId);
  await expectOnce(person, [await back.next("the ack", isAck)]);
  expect(asked()).toBe(1);
  expectNothingLogged(other.logs, [WEATHER.text]);
});

test("a process that must end gives up what it listens to, and gives it back", async () => {
  await start();
  const { reef } = town;
  const other = await startProcess(reef.env);
  const person = await makePerson(reef);
  const { user, assistant } = person;
  const chat = await openChat(other, user.token, assistant.agent_id);
  holdHearing();
  const clientId = speakTo(chat, WEATHER);
  await until("it is listened to", () => asked() === 1);
  await other.stop();
  expect(await usedBy(reef, user)).toMatchObject({ text: 0, heard: 0 });
  await until("the call is aborted", () => town.provider.audio.running === 0);
  const back = await openChat(reef, user.token, assistant.agent_id, "&after_seq=0");
  town.provider.audio.hear = ({ known }) => [{ text: known.text, duration: known.seconds }];
  speakTo(back, WEATHER, {}, clientId);
  await expectOnce(person, [await back.next("the ack", isAck)]);
});

test("Postgres goes away when it is heard: it waits, and is accepted once", async () => {
  const direct = await createTestDatabase();
  const proxy = await Proxy.open(() => Number(new URL(direct).port));
  closers.push(() => proxy.close());
  await start({ DATABASE_URL: Object.assign(new URL(direct), { port: String(proxy.port) }).toString() });
  const { reef } = town;
  const person = await makePerson(reef);
  const { chat } = person;
  const { open } = holdHearing();
  speakTo(chat, WEATHER);
  await until("it is listened to", () => asked() === 1);
  proxy.refuse();
  proxy.cut();
  open();
  await until("it waits", () => reef.logs.some((line) => line.includes("a spoken message waits to be accepted")));
  proxy.pass();
  const ack = await chat.next("the ack", isAck);
  await expectOnce(person, [ack]);
  expect(asked()).toBe(1);
  expectNothingLogged(reef.logs, [WEATHER.text]);
});

test("without Redis a voice is heard and answered", async () => {
  await start({ REDIS_URL: "redis://127.0.0.1:1" });
  const person = await makePerson(town.reef);
  speakTo(person.chat, WEATHER);
  await expectOnce(person, [await person.chat.next("the ack", isAck)]);
});

test("the process that writes an answer is killed: another one goes on, each sentence is spoken once", async () => {
  await start();
  const { reef, provider } = town;
  const there = await startProcess(reef.env);
  closers.push(() => there.stop());
  const person = await makePerson(reef, there);
  let killed = false;
  there.deps.gateway.isReady = () => killed;
  reef.deps.gateway.isReady = () => false;
  const doomed = new ApiProcess("doomed", reef.env, reef.dir);
  closers.push(() => doomed.kill());
  await doomed.start();
  const script = new Script(["One is said. Two is", " said. Three is said. Four", " is said."]);
  closers.push(() => script.open());
  reef.gateway.setAnswer(script.fakeAnswer);
  const { user, chat } = person;
  speakTo(chat, WEATHER, { speak: true });
  script.open(1);
  await chat.next("the first sentence is heard", isAudio);
  await doomed.kill();
  script.open(2);
  killed = true;
  await until("another one goes on", () => there.logs.some((line) => line.includes("turn started")));
  script.open();
  expect(await chat.next("the end", isEnd)).toMatchObject({ frames: 4, reason: "done" });
  const said = provider.audio.speechCalls.map((call) => call.text);
  expect(said.toSorted()).toEqual(["Four is said.", "One is said.", "Three is said.", "Two is said."]);
  await settled(reef, user);
  expect(await usedBy(reef, user)).toMatchObject({ text: 1, characters: said.join("").length });
});

test("the process ends while it speaks: what was sent is paid, the rest comes back, the text goes on", async () => {
  await start();
  const { reef, provider } = town;
  const other = await startProcess(reef.env);
  closers.push(() => other.stop());
  const person = await makePerson(reef, other);
  const { user, assistant, chat } = person;
  const gate = Promise.withResolvers<void>();
  closers.push(() => gate.resolve());
  provider.audio.speak = async function* ({ text }) {
    yield { seconds: 0.5 };
    if (text !== "One is said.") await gate.promise;
  };
  reef.gateway.setAnswer(async function* () {
    yield { text: "One is said. Two is said. Three is said." };
  });
  speakTo(chat, WEATHER, { speak: true });
  await chat.next("the first sentence is heard", isAudio);
  await until("the others are being made", () => provider.audio.speechCalls.length === 3);
  await other.stop();
  await until("no call runs", () => provider.audio.running === 0);
  const reserved = await reef.sql`select kind from usage_logs where user_id = ${user.id} and status = 'reserved'`;
  expect(reserved.map((row) => row["kind"])).toEqual([]);
  expect(await usedBy(reef, user)).toMatchObject({ characters: "One is said.".length, spoken: 1 });
  const back = await openChat(reef, user.token, assistant.agent_id, "&after_seq=0");
  await back.next("the answer", isAnswer);
});
