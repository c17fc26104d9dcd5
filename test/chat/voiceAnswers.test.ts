import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import { parseBuffer } from "music-metadata";
import { renderSpokenText } from "../../src/lib/spokenText.ts";
import { isAnswer, openChat, type Chat, type Json } from "../factories.ts";
import { newId } from "../../src/lib/ids.ts";
import { Script } from "../faults/script.ts";
import type { SpeechCall } from "../fakes/openaiAudio.ts";
import { startProcess, until } from "../harness.ts";
import { openRawChat } from "./rawChat.ts";
import {
  expectNothingLogged,
  isAck,
  isAudio,
  isEnd,
  isError,
  JOKE,
  leave,
  makePerson,
  resetProvider,
  settled,
  speakTo,
  startVoiceTown,
  usedBy,
  WEATHER,
  type Person,
  type VoiceTown,
} from "./voiceTown.ts";

/** Where sentences end is not where parts end, and the gateway keeps white space back until more comes. */
const PARTS = [
  "Here is the first sentence. And the se",
  "cond one, with **bold** words.\n\n```js\nlet",
  " secret = 1;\n```\nLook at [the page](https://pages.example/x). Then: ",
  "the last one is z. B. 3.5 long.",
];
const SENTENCES = [
  "Here is the first sentence.",
  "And the second one, with bold words.",
  "Look at the page.",
  "Then: the last one is z. B. 3.5 long.",
];

let town: VoiceTown;
const closers: (() => unknown)[] = [];
beforeAll(async () => void (town = await startVoiceTown()));
afterAll(() => town.close());
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
  await until("no call runs any more", () => town.provider.audio.running === 0);
  resetProvider(town);
  expectNothingLogged(town.reef.logs, [WEATHER.text, "first sentence", "bold"]);
});

const calls = () => town.provider.audio.speechCalls;
/** What the provider was asked to say, in the order of the answer: of two at a time either may be asked first. */
const asked = () =>
  calls()
    .map((call) => call.text)
    .toSorted((a, b) => SENTENCES.indexOf(a) - SENTENCES.indexOf(b));
const callOf = (text: string) => calls().find((call) => call.text === text);
const secondsOf = (text: string) => callOf(text)!.seconds;
const audioOf = ({ frames }: Chat) => frames.filter(isAudio);

/** Somebody asks, and wants to hear the answer; the model says what it is let say. */
async function ask(more: object = {}, parts = PARTS): Promise<Person & { script: Script; turnId: string }> {
  const script = new Script(parts);
  closers.push(() => script.open());
  town.reef.gateway.setAnswer(script.fakeAnswer);
  const person = await makePerson(town.reef);
  speakTo(person.chat, WEATHER, { speak: true, ...more });
  const { turn_id: turnId } = await person.chat.next("the ack", isAck);
  return { ...person, script, turnId };
}

/** A provider that says one second of each sentence and waits for the test before it ends it. */
function holdSpeech(fits: (call: SpeechCall) => boolean = () => true): { open: () => void } {
  const gate = Promise.withResolvers<void>();
  town.provider.audio.speak = async function* (call) {
    yield { seconds: 1 };
    if (fits(call)) await gate.promise;
    yield { seconds: 1 };
  };
  closers.push(() => gate.resolve());
  return { open: gate.resolve };
}

test("an answer is spoken sentence by sentence while it is written: in order, playable, all of it, once", async () => {
  const { reef } = town;
  const { user, assistant, chat, script, turnId } = await ask();
  const other = await openChat(reef, user.token, assistant.agent_id);
  script.open(1);
  const first = await chat.next("the first sentence is heard", isAudio);
  expect(first).toMatchObject({ turn_id: turnId, index: 0, format: "mp3" });
  expect(chat.frames.some(isAnswer)).toBe(false);
  script.open(2);
  await until("the second, before the answer is over", () => audioOf(chat).length === 2);
  expect(chat.frames.some(isAnswer)).toBe(false);
  script.open();
  await chat.next("the answer", isAnswer);
  expect(await chat.next("the end", isEnd)).toEqual({ type: "audio_end", turn_id: turnId, frames: 4, reason: "done" });
  expect(asked()).toEqual(SENTENCES);
  expect(audioOf(chat).map((frame) => frame.index)).toEqual([0, 1, 2, 3]);
  for (const [index, frame] of audioOf(chat).entries()) {
    const { format } = await parseBuffer(Buffer.from(frame.content, "base64"), undefined, { duration: true });
    expect(format.duration).toBeCloseTo(secondsOf(SENTENCES[index]!), 1);
  }
  await other.next("the answer", isAnswer);
  expect([...audioOf(other), ...other.frames.filter(isEnd)]).toEqual([]);
  await settled(reef, user);
  const seconds = calls().reduce((sum, call) => sum + call.seconds, 0);
  const characters = SENTENCES.join("").length;
  const used = await usedBy(reef, user);
  expect(used).toMatchObject({ text: 1, heard: 3, characters });
  // Whole seconds of the answer, not of each sentence.
  expect(Math.abs(used["spoken"]! - seconds)).toBeLessThan(1.5);
  expect(new Set(calls().map((call) => call.voice))).toEqual(new Set([assistant.voice]));
});

test("whatever the pieces in which it comes, what is said is the whole answer", async () => {
  const text = PARTS.join("");
  const { chat, script } = await ask({ voice: "alloy" }, text.match(/[\s\S]{1,7}/g)!);
  script.open();
  await chat.next("the end", isEnd);
  expect(asked()).toEqual(SENTENCES);
  expect(calls().every((call) => call.voice === "alloy")).toBe(true);
  expect(asked().join(" ").replace(/\s+/g, " ")).toBe(renderSpokenText(text).replace(/\s+/g, " "));
});

test("two sentences at most are being made at a time; a later one that is ready earlier waits", async () => {
  const { open } = holdSpeech((call) => call.text === SENTENCES[0]);
  const { chat, script } = await ask();
  script.open();
  await chat.next("the answer", isAnswer);
  await until("the second is made", () => callOf(SENTENCES[1]!)?.state === "done");
  expect([asked(), audioOf(chat)]).toEqual([SENTENCES.slice(0, 2), []]);
  open();
  await chat.next("the end", isEnd);
  expect(asked()).toEqual(SENTENCES);
  expect(audioOf(chat).map((frame) => frame.index)).toEqual([0, 1, 2, 3]);
});

test("the turn runs on another process: spoken all the same", async () => {
  const there = await startProcess(town.reef.env);
  closers.push(() => there.stop());
  there.deps.gateway.isReady = () => false;
  const script = new Script(PARTS);
  closers.push(() => script.open());
  town.reef.gateway.setAnswer(script.fakeAnswer);
  const { chat } = await makePerson(town.reef, there);
  speakTo(chat, WEATHER, { speak: true });
  script.open(1);
  await chat.next("the first sentence is heard", isAudio);
  script.open();
  expect(await chat.next("the end", isEnd)).toMatchObject({ frames: 4, reason: "done" });
  expect(asked()).toEqual(SENTENCES);
});

test("an answer with nothing to say ends without sound", async () => {
  const { user, chat, script } = await ask({}, ["```\nonly code. And more\n```"]);
  script.open();
  expect(await chat.next("the end", isEnd)).toMatchObject({ frames: 0, reason: "done" });
  expect(await usedBy(town.reef, user)).toMatchObject({ spoken: 0, characters: 0 });
});

test("the model says something else after all: what was said stays said, then comes what is stored", async () => {
  const gate = Promise.withResolvers<void>();
  closers.push(() => gate.resolve());
  town.reef.gateway.setAnswer(async function* () {
    yield { text: "First. Second one. And" };
    yield { wait: gate.promise };
    yield { retrying: true };
    yield { text: "First. Other text. The end." };
  });
  const { chat } = await makePerson(town.reef);
  speakTo(chat, WEATHER, { speak: true });
  await until("two sentences are heard", () => audioOf(chat).length === 2);
  gate.resolve();
  expect(await chat.next("the end", isEnd)).toMatchObject({ frames: 4, reason: "done" });
  expect(chat.frames.find(isAnswer)).toMatchObject({ content: "First. Other text. The end." });
  const order = ["First.", "Second one.", "Other text.", "The end."];
  expect(asked().toSorted((one, two) => order.indexOf(one) - order.indexOf(two))).toEqual(order);
});

test("two answers are heard one after the other", async () => {
  const { open } = holdSpeech((call) => call.text === "One.");
  const { chat, script, turnId } = await ask({}, ["One."]);
  script.open();
  await until("the first is being spoken", () => asked().length === 1);
  const next = new Script(["Two."]);
  next.open();
  town.reef.gateway.setAnswer(next.fakeAnswer);
  speakTo(chat, JOKE, { speak: true });
  await until("both are written", () => chat.frames.filter(isAnswer).length === 2);
  expect(asked()).toEqual(["One."]);
  open();
  await until("both are heard", () => chat.frames.filter(isEnd).length === 2);
  const heard = chat.frames
    .filter((frame) => isAudio(frame) || isEnd(frame))
    .map((frame) => [frame.turn_id === turnId, frame.type]);
  expect(heard).toEqual([
    [true, "audio"],
    [true, "audio_end"],
    [false, "audio"],
    [false, "audio_end"],
  ]);
});

test("stop in mid-sentence: silence at once, the provider's calls are aborted, only what was sent is paid", async () => {
  const { reef } = town;
  holdSpeech((call) => call.text !== SENTENCES[0]);
  const { user, chat, script, turnId } = await ask();
  script.open(2);
  await chat.next("the first sentence is heard", isAudio);
  await until("the second is being made", () => (callOf(SENTENCES[1]!)?.bytesSent ?? 0) > 0);
  chat.send({ type: "stop", turn_id: turnId });
  expect(await chat.next("the end", isEnd)).toMatchObject({ frames: 1, reason: "stopped" });
  expect(await chat.next("the answer", isAnswer)).toMatchObject({ finish: "stopped" });
  await until("the call is aborted", () => callOf(SENTENCES[1]!)!.state === "left");
  script.open();
  await settled(reef, user);
  expect(audioOf(chat).length).toBe(1);
  expect(chat.frames.filter(isEnd).length).toBe(1);
  expect(await usedBy(reef, user)).toMatchObject({ characters: SENTENCES[0]!.length, spoken: 2 });
});

test("stop when the answer is written and only its voice still speaks; of another turn: nothing", async () => {
  holdSpeech((call) => call.text === SENTENCES[1]);
  const { user, chat, script } = await ask();
  script.open();
  await chat.next("the answer", isAnswer);
  await until("the second is being made", () => (callOf(SENTENCES[1]!)?.bytesSent ?? 0) > 0);
  chat.send({ type: "stop", turn_id: user.id });
  chat.send({ type: "ping" });
  await chat.next("pong", (frame) => frame.type === "pong");
  expect(chat.frames.some(isEnd)).toBe(false);
  chat.send({ type: "stop" });
  expect(await chat.next("the end", isEnd)).toMatchObject({ frames: 1, reason: "stopped" });
  await until("no call runs", () => town.provider.audio.running === 0);
  await settled(town.reef, user);
  expect(await usedBy(town.reef, user)).toMatchObject({ characters: SENTENCES[0]!.length });
  expect(chat.frames.find(isAnswer)).toMatchObject({ finish: "complete" });
});

test("stop silences all that waits to be heard", async () => {
  holdSpeech();
  const { chat, script } = await ask({}, ["One."]);
  script.open();
  await until("the first is being spoken", () => asked().length === 1);
  speakTo(chat, JOKE, { speak: true });
  await until("both are written", () => chat.frames.filter(isAnswer).length === 2);
  chat.send({ type: "stop" });
  await until("both are silenced", () => chat.frames.filter(isEnd).length === 2);
  expect(chat.frames.filter(isEnd).map((frame) => [frame.frames, frame.reason])).toEqual([
    [0, "stopped"],
    [0, "stopped"],
  ]);
  await until("no call runs", () => town.provider.audio.running === 0);
  expect(asked()).toEqual(["One."]);
});

test("stop while it is still listened to: it is accepted, and neither answered nor spoken", async () => {
  const { reef, provider } = town;
  const gate = Promise.withResolvers<void>();
  provider.audio.hear = async function* ({ known }) {
    await gate.promise;
    yield { text: known.text, duration: known.seconds };
  };
  closers.push(() => gate.resolve());
  const script = new Script(PARTS);
  closers.push(() => script.open());
  reef.gateway.setAnswer(script.fakeAnswer);
  const { user, chat } = await makePerson(reef);
  const clientId = speakTo(chat, WEATHER, { speak: true });
  chat.send({ type: "stop", turn_id: user.id });
  chat.send({ type: "stop" });
  chat.send({ type: "ping" });
  await chat.next("pong", (frame) => frame.type === "pong");
  gate.resolve();
  const { turn_id: turnId } = await chat.next("the ack", isAck);
  expect(await chat.next("the end", isEnd)).toMatchObject({ turn_id: turnId, frames: 0, reason: "stopped" });
  expect(await chat.next("the answer", isAnswer)).toMatchObject({ turn_id: turnId, finish: "stopped" });
  expect(asked()).toEqual([]);
  // It holds for this voice alone.
  script.open();
  speakTo(chat, JOKE, { speak: true });
  await until("the next one is heard out", () => chat.frames.filter(isEnd).at(-1).reason === "done");
  expect(chat.frames.filter(isError)).toEqual([]);
  expect(chat.frames.find(isAck).client_id).toBe(clientId);
});

test("stop from another device", async () => {
  holdSpeech((call) => call.text !== SENTENCES[0]);
  const { user, assistant, chat, script } = await ask();
  const other = await openChat(town.reef, user.token, assistant.agent_id);
  script.open(2);
  await chat.next("the first sentence is heard", isAudio);
  other.send({ type: "stop" });
  expect(await chat.next("the end", isEnd)).toMatchObject({ frames: 1, reason: "stopped" });
  await until("no call runs", () => town.provider.audio.running === 0);
});

test("hanging up aborts the provider's calls and pays only what was sent; the answer goes on", async () => {
  const { reef } = town;
  holdSpeech((call) => call.text !== SENTENCES[0]);
  const { user, assistant, chat, script } = await ask();
  script.open(2);
  await chat.next("the first sentence is heard", isAudio);
  await until("the second is being made", () => callOf(SENTENCES[1]!));
  chat.socket.terminate();
  await until("no call runs", () => town.provider.audio.running === 0);
  script.open();
  const back = await openChat(reef, user.token, assistant.agent_id, "&after_seq=0");
  await back.next("the answer", isAnswer);
  await settled(reef, user);
  expect(calls().length).toBe(2);
  expect(audioOf(back)).toEqual([]);
  expect(await usedBy(reef, user)).toMatchObject({ characters: SENTENCES[0]!.length, text: 1 });
});

test.each([
  ["characters", { tts_characters: SENTENCES[0]!.length + 5 }, "tts_characters"],
  ["seconds", { voice_output_seconds: 3 }, "voice_output_seconds"],
] as const)(
  "the day's %s run out in mid-answer: what fits is heard, the text goes on unharmed",
  async (_, left, kind) => {
    const { reef } = town;
    const script = new Script(PARTS);
    script.open();
    reef.gateway.setAnswer(script.fakeAnswer);
    const { user, chat } = await makePerson(reef);
    await leave(reef, user, left);
    speakTo(chat, WEATHER, { speak: true });
    expect(await chat.next("the end", isEnd)).toMatchObject({ frames: 1, reason: "limit" });
    const { turn_id } = chat.frames.find(isEnd);
    expect(chat.frames.find(isError)).toMatchObject({
      code: "voice_limit_reached",
      kind,
      turn_id,
      upgrade_to: "pro",
      reset_at: expect.any(String),
    });
    expect(await chat.next("the answer", isAnswer)).toMatchObject({ content: script.text(), finish: "complete" });
    expect(asked()).toEqual(SENTENCES.slice(0, 1));
    await settled(reef, user);
    await usedBy(reef, user);
  },
);

test("who has just enough hears all of it: what a sentence in the making holds is not missing for the next", async () => {
  const { reef } = town;
  // Spoken faster than is reserved for it: two and three seconds for the first two sentences, two and three for the others.
  town.provider.audio.speak = () => [{ seconds: 0.5 }];
  const script = new Script(PARTS);
  script.open();
  reef.gateway.setAnswer(script.fakeAnswer);
  const { user, chat } = await makePerson(reef);
  await leave(reef, user, { voice_output_seconds: 5 });
  speakTo(chat, WEATHER, { speak: true });
  expect(await chat.next("the end", isEnd)).toMatchObject({ frames: 4, reason: "done" });
  await settled(reef, user);
  expect((await usedBy(reef, user))["spoken"]).toBe(120 - 5 + 3);
});

test.each([
  ["refuses", [{ status: 400, message: "no" }]],
  ["breaks off", [{ seconds: 1 }, { cut: true as const }]],
  ["never ends", Array(100).fill({ seconds: 60 })],
])(
  "the provider %s in mid-answer: the voice ends, the text goes on unharmed, nothing of it is paid",
  async (_, steps) => {
    const { reef } = town;
    town.provider.audio.speak = (call) => (call.text === SENTENCES[1] ? steps : [{ seconds: 0.9 }]);
    const { user, chat, script } = await ask();
    script.open(2);
    expect(await chat.next("the end", isEnd)).toMatchObject({ frames: 1, reason: "failed" });
    const { turn_id } = chat.frames.find(isEnd);
    expect(chat.frames.find(isError)).toMatchObject({ code: "voice_unavailable", turn_id });
    script.open();
    expect(await chat.next("the answer", isAnswer)).toMatchObject({ content: script.text(), finish: "complete" });
    await settled(reef, user);
    expect(await usedBy(reef, user)).toMatchObject({ characters: SENTENCES[0]!.length, spoken: 1, text: 1 });
  },
);

test("the answer fails: its voice ends, what was said of it is paid", async () => {
  const gate = Promise.withResolvers<void>();
  closers.push(() => gate.resolve());
  town.reef.gateway.setAnswer(async function* () {
    yield { text: "Begun. And" };
    yield { wait: gate.promise };
    yield { error: "format" };
  });
  const { user, chat } = await makePerson(town.reef);
  speakTo(chat, WEATHER, { speak: true });
  await chat.next("the first sentence is heard", isAudio);
  gate.resolve();
  expect(await chat.next("the end", isEnd)).toMatchObject({ frames: 1, reason: "failed" });
  expect(await chat.next("the error", isError)).toMatchObject({ code: "turn_failed" });
  await settled(town.reef, user);
  expect(await usedBy(town.reef, user)).toMatchObject({ text: 0, heard: 3, characters: "Begun.".length });
});

test("a device that stops reading: what is made waits for it, nothing more is; then all comes, in order", async () => {
  const { reef } = town;
  await reef.sql`update plan_limits set voice_output_seconds = 100000 where plan = 'free'`;
  closers.push(() => reef.sql`update plan_limits set voice_output_seconds = 120 where plan = 'free'`);
  // Half a megabyte each: all of it is more than any buffer on the way holds.
  town.provider.audio.speak = () => [{ seconds: 100 }];
  const lines = Array.from({ length: 60 }, (_, n) => `This is sentence ${n} of it.`);
  const script = new Script([lines.join(" ")]);
  reef.gateway.setAnswer(script.fakeAnswer);
  const { user, assistant, chat } = await makePerson(reef);
  const slow = await openRawChat(reef.url, user.token, assistant.agent_id);
  closers.push(() => slow.destroy());
  slow.send({ type: "voice", client_id: newId(), speak: true, audio: WEATHER.bytes.toString("base64") });
  await chat.next("it is heard", (frame) => frame.type === "message");
  slow.pause();
  script.open();
  await chat.next("the other device has it all", isAnswer);
  await until("what is made waits", async () => {
    const metrics = await (await fetch(`${reef.url}/metrics`)).text();
    return /^reef_chat_slow_readers 1$/m.test(metrics) && town.provider.audio.running === 0;
  });
  expect(calls().length).toBeLessThan(lines.length);
  slow.resume();
  await until("the end", () => slow.frames.some(isEnd), 30_000);
  expect(slow.frames.filter(isAudio).map((frame) => frame.index)).toEqual(lines.map((_, n) => n));
  expect(slow.frames.filter(isEnd)).toMatchObject([{ frames: lines.length, reason: "done" }]);
  expect(slow.messages().map((message) => message.content)).toEqual([WEATHER.text, lines.join(" ")]);
  await settled(reef, user);
});

test("the message is sent again on a new socket: the answer is spoken there, from its start, once", async () => {
  const { reef } = town;
  const { user, assistant, chat, script } = await ask();
  const { client_id: clientId } = chat.frames.find(isAck);
  chat.socket.terminate();
  script.open(2);
  const back = await openChat(reef, user.token, assistant.agent_id);
  await until("it has the text so far", () => back.frames.some((frame: Json) => frame.type === "chunk"));
  speakTo(back, WEATHER, { speak: true }, clientId);
  await back.next("the first sentence is heard", isAudio);
  speakTo(back, WEATHER, { speak: true }, clientId);
  await until("two acks", () => back.frames.filter(isAck).length === 2);
  script.open();
  expect(await back.next("the end", isEnd)).toMatchObject({ frames: 4, reason: "done" });
  expect(asked()).toEqual(SENTENCES);
  speakTo(back, WEATHER, { speak: true }, clientId);
  await until("three acks", () => back.frames.filter(isAck).length === 3);
  expect(asked()).toEqual(SENTENCES);
  // On yet another one the answer is whole.
  const third = await openChat(reef, user.token, assistant.agent_id, "&after_seq=0");
  await third.next("the answer", isAnswer);
  speakTo(third, WEATHER, { speak: true }, clientId);
  expect(await third.next("the end", isEnd)).toMatchObject({ frames: 4, reason: "done" });
});

test.each(["", "&after_seq=0"])(
  "the answer was written while nobody was here: sent again (%s) it is spoken, from its start",
  async (query) => {
    const { reef } = town;
    const { user, assistant, chat, script, turnId } = await ask();
    const { client_id: clientId } = chat.frames.find(isAck);
    chat.socket.terminate();
    script.open();
    await until("it is written", async () => {
      const rows = await reef.sql`select 1 from turns where id = ${turnId} and status = 'done'`;
      return rows.length === 1;
    });
    const back = await openChat(reef, user.token, assistant.agent_id, query);
    if (query !== "") await back.next("the answer", isAnswer);
    speakTo(back, WEATHER, { speak: true }, clientId);
    expect(await back.next("the end", isEnd)).toMatchObject({ turn_id: turnId, frames: 4, reason: "done" });
    expect(back.frames.filter(isAnswer).length).toBe(query === "" ? 0 : 1);
  },
);
