import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import { newId } from "../../src/lib/ids.ts";
import { isAnswer, openChat } from "../factories.ts";
import { until } from "../harness.ts";
import {
  expectNothingLogged,
  history,
  isAck,
  isError,
  JOKE,
  leave,
  makePerson,
  recording,
  resetProvider,
  settled,
  speakInBinary,
  speakTo,
  startVoiceTown,
  usedBy,
  WEATHER,
  type VoiceTown,
} from "./voiceTown.ts";

let town: VoiceTown;
beforeAll(async () => void (town = await startVoiceTown()));
afterAll(() => town.close());
afterEach(async () => {
  await until("no call runs any more", () => town.provider.audio.running === 0);
  resetProvider(town);
  expectNothingLogged(town.reef.logs, [
    WEATHER.text,
    JOKE.text,
    "weather",
    WEATHER.bytes.toString("base64").slice(0, 30),
  ]);
});

/** The provider is asked, and answers when it is let. */
function holdHearing(): { open: () => void } {
  const gate = Promise.withResolvers<void>();
  town.provider.audio.hear = async function* ({ known }) {
    await gate.promise;
    yield { text: known.text, duration: known.seconds };
  };
  return { open: gate.resolve };
}
const asked = () => town.provider.audio.transcriptionCalls.length;

test.each([
  ["in the frame", speakTo],
  ["in a binary frame", speakInBinary],
])(
  "what is said, %s, is the user's message: for all devices, in the history, answered, charged once",
  async (_, speak) => {
    const { reef } = town;
    const person = await makePerson(reef);
    const { user, assistant, chat } = person;
    const other = await openChat(reef, user.token, assistant.agent_id);
    const { open } = holdHearing();
    const clientId = speak(chat, WEATHER, { format: "wav" });
    await other.next("somebody is speaking", (frame) => frame.type === "typing" && frame.role === "user");
    chat.send({ type: "ping" });
    await chat.next("other frames are not held up", (frame) => frame.type === "pong");
    expect(chat.frames.some(isAck)).toBe(false);
    open();
    expect(await chat.next("the ack", isAck)).toMatchObject({ client_id: clientId, seq: 1 });
    for (const device of [chat, other]) {
      const message = await device.next("the message", (frame) => frame.type === "message" && frame.role === "user");
      expect(message).toMatchObject({ content: WEATHER.text, client_id: clientId, seq: 1, finish: "complete" });
      expect(await device.next("the answer", isAnswer)).toMatchObject({ content: `Echo: ${WEATHER.text}` });
    }
    expect(await history(person)).toEqual([
      ["user", WEATHER.text, "complete"],
      ["assistant", `Echo: ${WEATHER.text}`, "complete"],
    ]);
    await settled(reef, user);
    expect(await usedBy(reef, user)).toEqual({ text: 1, heard: Math.ceil(WEATHER.seconds), spoken: 0, characters: 0 });
    expect(chat.frames.filter((frame) => ["audio", "audio_end", "error"].includes(frame.type))).toEqual([]);
  },
);

test.each(["speech.mp3", "speech.m4a", "chrome.webm", "speech.ogg", "speech.flac"])("%s is heard", async (name) => {
  const { chat } = await makePerson(town.reef);
  const sound = recording(name);
  speakInBinary(chat, sound);
  expect(await chat.next("the message", (frame) => frame.type === "message")).toMatchObject({ content: sound.text });
});

test("the same client_id is the same message, whatever is heard the second time; it is heard once", async () => {
  const { reef } = town;
  const person = await makePerson(reef);
  const { user, chat } = person;
  const clientId = speakTo(chat, WEATHER);
  await chat.next("the ack", isAck);
  town.provider.audio.hear = () => [{ text: "something else", duration: 3 }];
  speakTo(chat, WEATHER, {}, clientId);
  await until("two acks", () => chat.frames.filter(isAck).length === 2);
  speakInBinary(chat, JOKE, {}, clientId);
  await until("three acks", () => chat.frames.filter(isAck).length === 3);
  const [first, ...others] = chat.frames.filter(isAck);
  expect(others).toEqual([first, first]);
  await chat.next("the answer", isAnswer);
  await settled(reef, user);
  expect([asked(), (await history(person)).length]).toEqual([1, 2]);
  expect(await usedBy(reef, user)).toMatchObject({ text: 1, heard: 3 });
});

test("sent again while it is listened to: one answer for both, on the same socket and on another", async () => {
  const { reef } = town;
  const person = await makePerson(reef);
  const { user, assistant, chat } = person;
  const { open } = holdHearing();
  const clientId = speakTo(chat, WEATHER);
  await until("it is listened to", () => asked() === 1);
  speakInBinary(chat, WEATHER, {}, clientId);
  const again = await openChat(reef, user.token, assistant.agent_id);
  speakInBinary(again, WEATHER, {}, clientId);
  again.send({ type: "ping" });
  await again.next("pong", (frame) => frame.type === "pong");
  open();
  const acks = [await chat.next("the ack", isAck), await again.next("the ack", isAck)];
  expect(acks[1]).toEqual(acks[0]);
  await chat.next("the answer", isAnswer);
  await settled(reef, user);
  expect([asked(), (await history(person)).length]).toEqual([1, 2]);
  expect(await usedBy(reef, user)).toMatchObject({ text: 1, heard: 3 });
  expect([...chat.frames, ...again.frames].filter(isError)).toEqual([]);
});

test("a client_id of a typed message is that message", async () => {
  const { chat } = await makePerson(town.reef);
  const clientId = chat.say("typed");
  await chat.next("the ack", isAck);
  speakTo(chat, WEATHER, {}, clientId);
  await until("the same ack", () => chat.frames.filter(isAck).length === 2);
  expect(asked()).toBe(0);
});

test("one voice at a time: the second is refused with its sound, the first goes on, then another may come", async () => {
  const person = await makePerson(town.reef);
  const { chat } = person;
  const { open } = holdHearing();
  const first = speakTo(chat, WEATHER);
  await until("it is listened to", () => asked() === 1);
  const refused = [speakTo(chat, JOKE), speakInBinary(chat, JOKE)];
  for (const clientId of refused)
    expect(await chat.next("a refusal", (frame) => frame.client_id === clientId)).toMatchObject({
      type: "error",
      code: "too_many_frames",
      retry_after: expect.any(Number),
    });
  open();
  expect((await chat.next("the ack", isAck)).client_id).toBe(first);
  await until("another may come", () => {
    if (chat.frames.some((frame) => isAck(frame) && frame.client_id === refused[0])) return true;
    speakTo(chat, JOKE, {}, refused[0]);
    return false;
  });
  await until("both are answered", () => chat.frames.filter(isAnswer).length === 2);
  expect((await history(person)).length).toBe(4);
});

test("a flood of voices: one is heard, the socket lives, nothing is held", async () => {
  const { user, chat } = await makePerson(town.reef);
  const { open } = holdHearing();
  speakTo(chat, WEATHER);
  await until("it is listened to", () => asked() === 1);
  const big = { bytes: Buffer.alloc(700_000, 1) };
  for (let n = 0; n < 60; n++) (n % 2 ? speakTo : speakInBinary)(chat, big);
  await until("all others are refused", () => chat.frames.filter(isError).length === 60);
  expect(new Set(chat.frames.filter(isError).map((frame) => frame.code))).toEqual(new Set(["too_many_frames"]));
  open();
  await chat.next("the answer", isAnswer);
  expect(asked()).toBe(1);
  expect(await usedBy(town.reef, user)).toMatchObject({ heard: 3, text: 1 });
});

const silence = recording("silence.wav");
const bad: [string, (clientId: string) => unknown[], string][] = [
  [
    "text",
    (id) => [{ type: "voice", client_id: id, audio: Buffer.from("no sound at all").toString("base64") }],
    "unsupported_audio",
  ],
  [
    "a ZIP",
    (id) => [{ type: "voice", client_id: id }, new Uint8Array(Buffer.from("PK\u0003\u0004aaaaaaaaaaaaaaaaaaaaaa"))],
    "unsupported_audio",
  ],
  ["one byte", (id) => [{ type: "voice", client_id: id }, new Uint8Array(1)], "unsupported_audio"],
  ["no byte", (id) => [{ type: "voice", client_id: id }, new Uint8Array(0)], "unsupported_audio"],
  [
    "four megabytes of nothing",
    (id) => [{ type: "voice", client_id: id }, new Uint8Array(4 * 1024 * 1024)],
    "unsupported_audio",
  ],
  [
    "a head without sound",
    (id) => [{ type: "voice", client_id: id }, new Uint8Array(WEATHER.bytes.subarray(0, 44))],
    "unsupported_audio",
  ],
  ["silence", (id) => [{ type: "voice", client_id: id }, new Uint8Array(silence.bytes)], "nothing_heard"],
  ["no base64", (id) => [{ type: "voice", client_id: id, audio: "%%%%" }], "invalid_frame"],
  ["base64 cut short", (id) => [{ type: "voice", client_id: id, audio: "AAAAA" }], "invalid_frame"],
  ["empty audio", (id) => [{ type: "voice", client_id: id, audio: "" }], "invalid_frame"],
  ["audio that is no text", (id) => [{ type: "voice", client_id: id, audio: [1] }], "invalid_frame"],
  ["something more", (id) => [{ type: "voice", client_id: id, audio: "AAAA", more: 1 }], "invalid_frame"],
  [
    "speak that is no yes or no",
    (id) => [{ type: "voice", client_id: id, audio: "AAAA", speak: "loudly" }],
    "invalid_frame",
  ],
  [
    "six thousand fields more",
    (id) => [{ type: "voice", client_id: id, ...Object.fromEntries(Array.from({ length: 6000 }, (_, n) => [n, 1])) }],
    "invalid_frame",
  ],
  ["big and not valid", (id) => [{ type: "voice", client_id: id, audio: "A".repeat(200_001) }], "invalid_frame"],
  [
    "a voice outside the plan",
    (id) => [{ type: "voice", client_id: id, audio: WEATHER.bytes.toString("base64"), speak: true, voice: "onyx" }],
    "voice_not_in_plan",
  ],
  [
    "a voice that does not exist",
    (id) => [{ type: "voice", client_id: id, audio: WEATHER.bytes.toString("base64"), speak: true, voice: "nobody" }],
    "voice_not_in_plan",
  ],
];
test.each(bad)("%s: an error that names the message, the socket lives, nothing is charged", async (_, frames, code) => {
  const person = await makePerson(town.reef);
  const { user, chat } = person;
  const clientId = newId();
  for (const frame of frames(clientId)) chat.send(frame);
  const error = await chat.next("the error", isError);
  expect(error).toMatchObject({ code, client_id: clientId });
  expect(JSON.stringify(error).length).toBeLessThan(4000);
  expect([asked(), await history(person)]).toEqual([code === "nothing_heard" ? asked() : 0, []]);
  await settled(town.reef, user);
  expect(await usedBy(town.reef, user)).toEqual({ text: 0, heard: 0, spoken: 0, characters: 0 });
  speakTo(chat, WEATHER);
  await chat.next("it goes on", isAck);
});

test("a voice without client_id, and a binary frame that nobody announced, are no frames", async () => {
  const { chat } = await makePerson(town.reef);
  chat.send({ type: "voice", audio: "AAAA" });
  chat.send({ type: "voice", client_id: "not an id" });
  chat.send(new Uint8Array(10));
  await until("each gets its error", () => chat.frames.filter(isError).length === 3);
  expect(chat.frames.filter(isError).map((frame) => frame.code)).toEqual(Array(3).fill("invalid_frame"));
  // An announcement is used up by its sound, and forgotten with the next voice.
  speakInBinary(chat, WEATHER);
  await chat.next("the answer", isAnswer);
  chat.send(new Uint8Array(10));
  await until("it is none", () => chat.frames.filter(isError).length === 4);
  const forgotten = newId();
  chat.send({ type: "voice", client_id: forgotten });
  const taken = speakTo(chat, JOKE);
  await chat.next("the later one is taken", (frame) => isAck(frame) && frame.client_id === taken);
  chat.send(new Uint8Array(JOKE.bytes));
  await until("the sound came too late", () => chat.frames.filter(isError).length === 5);
  expect(chat.frames.some((frame) => frame.client_id === forgotten)).toBe(false);
});

const tooBig: [string, () => unknown[]][] = [
  ["a message over 64 KB", () => [{ type: "message", content: "x".repeat(65 * 1024) }]],
  ["text over 64 KB that is no JSON", () => ["voice".repeat(20_000)]],
  ["a binary frame over 64 KB that nobody announced", () => [new Uint8Array(64 * 1024 + 1)]],
  [
    "a voice with more fields than any has",
    () => [`{"type":"voice",${Array.from({ length: 60_000 }, (_, n) => `"${n}":[]`).join(",")}}`],
  ],
  ["a voice over 1 MB", () => [{ type: "voice", client_id: newId(), audio: "A".repeat(1024 * 1024) }]],
  ["sound over 4 MB", () => [{ type: "voice", client_id: newId() }, new Uint8Array(4 * 1024 * 1024 + 1)]],
];
test.each(tooBig)("%s closes with 1009", async (_, frames) => {
  const { chat } = await makePerson(town.reef);
  for (const frame of frames()) chat.send(frame);
  await until("it is closed", () => chat.closed);
  expect(chat.closed!.code).toBe(1009);
});

test("a socket says what it takes", async () => {
  const { chat } = await makePerson(town.reef);
  expect(chat.frames[0].limits).toMatchObject({
    frame_bytes: 64 * 1024,
    voice_frame_bytes: 1024 * 1024,
    sound_bytes: 4 * 1024 * 1024,
  });
});

test("the day's messages, or its seconds, are used up: refused before anything is spent", async () => {
  const { reef } = town;
  for (const [left, refusal] of [
    [{ text_messages: 0 }, { code: "RATE_LIMITED", kind: "text_messages", limit: 50, used: 50 }],
    [{ voice_input_seconds: 2 }, { code: "voice_limit_reached", kind: "voice_input_seconds", limit: 120, used: 118 }],
  ] as const) {
    const person = await makePerson(reef);
    await leave(reef, person.user, left);
    const before = await usedBy(reef, person.user);
    const clientId = speakTo(person.chat, WEATHER);
    expect(await person.chat.next("the refusal", isError)).toMatchObject({
      ...refusal,
      client_id: clientId,
      reset_at: expect.any(String),
      upgrade_to: "pro",
    });
    expect([asked(), await history(person), await usedBy(reef, person.user)]).toEqual([0, [], before]);
  }
});

test("the last message of the day goes to somebody else while this one is listened to: the seconds come back", async () => {
  const { reef } = town;
  const person = await makePerson(reef);
  const { user, chat } = person;
  await leave(reef, user, { text_messages: 1 });
  const { open } = holdHearing();
  const clientId = speakTo(chat, WEATHER);
  await until("it is listened to", () => asked() === 1);
  chat.say("typed meanwhile");
  await chat.next("that one is accepted", isAck);
  open();
  expect(await chat.next("the refusal", isError)).toMatchObject({ code: "RATE_LIMITED", client_id: clientId });
  await settled(reef, user);
  expect(await usedBy(reef, user)).toMatchObject({ text: 50, heard: 0 });
});

test("a paused assistant, a suspended user: refused before anything is spent", async () => {
  const { reef } = town;
  const paused = await makePerson(reef);
  await reef.sql`update assistants set status = 'paused' where id = ${paused.assistant.id}`;
  const suspended = await makePerson(reef);
  await reef.sql`update users set status = 'suspended' where id = ${suspended.user.id}`;
  for (const [{ chat }, code] of [
    [paused, "assistant_paused"],
    [suspended, "account_suspended"],
  ] as const) {
    const clientId = speakTo(chat, WEATHER);
    expect(await chat.next("the refusal", isError)).toMatchObject({ code, client_id: clientId });
  }
  expect(asked()).toBe(0);
});

test("the provider is down: the seconds come back, the same client_id goes through later", async () => {
  const { reef } = town;
  const { user, chat } = await makePerson(reef);
  town.provider.audio.hear = () => [{ status: 400, message: "no" }];
  const clientId = speakTo(chat, WEATHER);
  expect(await chat.next("the error", isError)).toMatchObject({ code: "voice_unavailable", client_id: clientId });
  await settled(reef, user);
  expect(await usedBy(reef, user)).toMatchObject({ text: 0, heard: 0 });
  resetProvider(town);
  speakTo(chat, WEATHER, {}, clientId);
  await chat.next("the answer", isAnswer);
});

test("what is heard and too long for a message is refused and not charged", async () => {
  const { user, chat } = await makePerson(town.reef);
  town.provider.audio.hear = () => [{ text: "word ".repeat(7000), duration: 2 }];
  speakTo(chat, WEATHER);
  expect(await chat.next("the refusal", isError)).toMatchObject({ code: "message_too_long" });
  await settled(town.reef, user);
  expect(await usedBy(town.reef, user)).toMatchObject({ text: 0, heard: 0 });
});

test("the phone is gone right after speaking: accepted, answered, charged, and found again", async () => {
  const { reef } = town;
  const person = await makePerson(reef);
  const { user, assistant, chat } = person;
  const { open } = holdHearing();
  const clientId = speakInBinary(chat, WEATHER, { speak: true });
  await until("it is listened to", () => asked() === 1);
  chat.socket.terminate();
  await until("it is gone", () => chat.closed);
  open();
  await until("it is answered", async () => (await history(person)).length === 2);
  const back = await openChat(reef, user.token, assistant.agent_id, "&after_seq=0");
  const found = await back.next("what was said", (frame) => frame.type === "message" && frame.client_id === clientId);
  expect(found.content).toBe(WEATHER.text);
  speakInBinary(back, WEATHER, {}, clientId);
  expect(await back.next("the ack", isAck)).toMatchObject({ client_id: clientId, seq: 1 });
  await settled(reef, user);
  expect(await usedBy(reef, user)).toEqual({ text: 1, heard: 3, spoken: 0, characters: 0 });
  expect([asked(), town.provider.audio.speechCalls.length]).toEqual([1, 0]);
});

test("without a provider there is no voice, and everything else", async () => {
  const mute = await startVoiceTown({ OPENAI_API_KEY: "" });
  try {
    const { user, chat } = await makePerson(mute.reef);
    const clientId = speakTo(chat, WEATHER);
    expect(await chat.next("the error", isError)).toMatchObject({ code: "voice_unavailable", client_id: clientId });
    chat.say("hello");
    await chat.next("the answer", isAnswer);
    expect(await usedBy(mute.reef, user)).toMatchObject({ text: 1, heard: 0 });
  } finally {
    await mute.close();
  }
});
