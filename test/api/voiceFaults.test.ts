import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import type { HearingStep, SpeakingStep } from "../fakes/openaiAudio.ts";
import { call, makeUser, type Answer, type TestUser } from "../factories.ts";
import { ApiProcess } from "../faults/apiProcess.ts";
import { startProcess, startTestReef, until } from "../harness.ts";
import {
  dayOf,
  expectFree,
  expectSound,
  fixture,
  hearBytes,
  readAnswer,
  send,
  startVoiceTown,
  type VoiceTown,
} from "./voiceTown.ts";

const PHRASE = "A secret that the provider quotes.";
const JSON_TYPE = { "content-type": "application/json" };

let town: VoiceTown;
let user: TestUser;
beforeAll(async () => void (town = await startVoiceTown({ VOICE_FIRST_BYTE_MS: "2500" })));
afterAll(() => town.stop());
beforeEach(async () => {
  town.reset();
  user = await makeUser(town.reef);
});

const hear = (headers?: Record<string, string>) => hearBytes(town.reef, user, fixture("speech.ogg"), headers);
const say = async (headers: Record<string, string> = {}) =>
  readAnswer(await send(town.reef, user, "speak", JSON.stringify({ text: PHRASE }), { ...JSON_TYPE, ...headers }));
const WAYS: [string, () => Promise<Answer>][] = [
  ["transcribe", () => hear()],
  ["speak", () => say()],
  ["speak, streamed", () => say({ accept: "audio/*" })],
];

/** How often a failure was counted for the operator. */
async function counted(name: string, reason: string): Promise<number> {
  const { values } = await town.reef.deps.metrics.speechFailures.get();
  return values.find(({ labels }) => labels.call === name && labels.reason === reason)?.value ?? 0;
}

describe("what goes wrong at the provider is 503, told to the operator, and costs nothing", () => {
  const FAULTS: [string, HearingStep & SpeakingStep, string, number | undefined][] = [
    ["our key refused", { status: 401, message: PHRASE }, "key_refused", undefined],
    ["quota used up", { status: 429, retryAfter: 0, code: "insufficient_quota" }, "quota_used_up", undefined],
    ["too many requests", { status: 429, retryAfter: 7 }, "rate_limited", 7],
    ["out of order", { status: 500, retryAfter: 0 }, "server_error", 1],
    ["overloaded", { status: 503, retryAfter: 90 }, "server_error", 60],
    ["silent", { hang: true }, "timeout", 5],
    ["cut off", { cut: true }, "connection", 5],
  ];
  for (const [what, fault, reason, retryAfter] of FAULTS) {
    test(what, async () => {
      town.openai.audio.hear = () => [fault];
      town.openai.audio.speak = () => [fault];
      for (const [way, ask] of WAYS) {
        const name = way === "transcribe" ? way : "speak";
        const before = await counted(name, reason);
        const { status, body, headers } = await ask();
        expect([way, status, body.code, body.retry_after]).toEqual([way, 503, "voice_unavailable", retryAfter]);
        expect([way, headers.get("retry-after")]).toEqual([way, retryAfter === undefined ? null : String(retryAfter)]);
        expect(body.error).not.toContain("secret");
        expect([way, await counted(name, reason)]).toEqual([way, before + 1]);
        expect(headers.get("x-ratelimit-voice-remaining")).toBe("120");
      }
      await expectFree(town.reef, user);
    });
  }

  test("a key of idempotency is given back with everything else", async () => {
    const key = { "idempotency-key": "again" };
    town.openai.audio.hear = () => [{ status: 500, retryAfter: 0 }];
    expect((await hear(key)).status).toBe(503);
    town.reset();
    expect((await hear(key)).body.text).toBe("how old is the moon");
    expect((await dayOf(town.reef, user)).used.input).toBe(2);
  });

  test("a provider that says it can't read the audio is believed", async () => {
    town.openai.audio.hear = () => [{ status: 400, message: "Audio file might be corrupted or unsupported" }];
    expect((await hear()).body.code).toBe("unsupported_audio");
    await expectFree(town.reef, user);
  });
});

test("a recording so long that it may take all the time there is: its end is the provider's silence, too", async () => {
  const other = await startVoiceTown({ VOICE_TIMEOUT_MS: "300", VOICE_FIRST_BYTE_MS: "600000" });
  try {
    other.openai.audio.hear = () => [{ hang: true }];
    const person = await makeUser(other.reef);
    const { status, body } = await hearBytes(other.reef, person, fixture("speech.ogg"));
    expect([status, body.code, body.retry_after]).toEqual([503, "voice_unavailable", 5]);
    await expectFree(other.reef, person);
    await expectSound(other);
  } finally {
    await other.stop();
  }
});

test("who hangs up while it is listened to pays nothing, and the provider's call ends", async () => {
  const patient = await startVoiceTown();
  try {
    patient.openai.audio.hear = () => [{ hang: true }];
    const person = await makeUser(patient.reef);
    const hangUp = new AbortController();
    const headers = { "content-type": "audio/ogg", "idempotency-key": "gone" };
    const asked = send(patient.reef, person, "transcribe", fixture("speech.ogg"), headers, hangUp.signal).catch(
      () => null,
    );
    const call = await until("it is listened to", () => patient.openai.audio.transcriptionCalls[0]);
    hangUp.abort();
    await asked;
    await until("the provider knows", () => call.state === "left");
    await until("it came back", async () => (await dayOf(patient.reef, person)).used.input === 0);
    await until("the answer is written down", () => patient.reef.logs.some((line) => line.includes('"status":499')));
    // The key came back, too.
    Object.assign(patient.openai.audio, { hear: () => [{ text: "there again" }] });
    const again = await hearBytes(patient.reef, person, fixture("speech.ogg"), headers);
    expect(again.body.text).toBe("there again");
    await expectSound(patient);
  } finally {
    await patient.stop();
  }
});

test("without a key voice is not offered, and everything else is", async () => {
  const reef = await startTestReef();
  try {
    const person = await makeUser(reef);
    const answers = [
      await hearBytes(reef, person, fixture("speech.wav")),
      await readAnswer(await send(reef, person, "speak", '{"text":"Hi."}', JSON_TYPE)),
    ];
    for (const { status, body } of answers)
      expect([status, body.code, body.error]).toEqual([503, "voice_unavailable", "Voice is not set up here."]);
    await expectFree(reef, person);
    expect((await person.call("POST", "/api/assistants", {})).status).toBe(201);
    expect((await call(reef.url, "GET", "/health")).status).toBe(200);
  } finally {
    await reef.stop();
  }
});

test("a process that is stopped breaks off what takes too long: nobody pays for half a speech or half an ear", async () => {
  const other = await startVoiceTown();
  const next = await startProcess(other.reef.env);
  try {
    const person = await makeUser(other.reef);
    other.openai.audio.hear = () => [{ hang: true }];
    other.openai.audio.speak = () => [{ seconds: 1 }, { hang: true }];
    const heard = hearBytes(other.reef, person, fixture("speech.ogg")).catch(() => null);
    const body = JSON.stringify({ text: PHRASE });
    const spoken = await send(other.reef, person, "speak", body, { ...JSON_TYPE, accept: "audio/*" });
    const read = spoken.arrayBuffer().catch((error: Error) => error);
    const { audio } = other.openai;
    await until("both are under way", () => audio.transcriptionCalls.length + audio.speechCalls.length === 2);
    await other.reef.stopProcess();
    expect([await heard, (await read) instanceof Error]).toEqual([null, true]);
    await expectFree({ ...other.reef, sql: next.deps.sql }, person);
  } finally {
    await next.stop();
    await other.stop();
  }
});

test("a process that is killed in the middle: all comes back, the same request again is charged once", async () => {
  const other = await startVoiceTown();
  const { reef, openai } = other;
  const victim = new ApiProcess("victim", reef.env, reef.dir);
  try {
    await victim.start();
    const person = await makeUser(reef);
    openai.audio.hear = () => [{ hang: true }];
    openai.audio.speak = () => [{ seconds: 1 }, { hang: true }];
    const headers = { "content-type": "audio/ogg", "idempotency-key": "killed" };
    const heard = send(victim, person, "transcribe", fixture("speech.ogg"), headers).catch(() => null);
    const spoken = await send(victim, person, "speak", JSON.stringify({ text: PHRASE }), {
      ...JSON_TYPE,
      accept: "audio/*",
    });
    await until(
      "both are under way",
      () => openai.audio.transcriptionCalls.length + openai.audio.speechCalls.length === 2,
    );
    await victim.kill();
    expect(await heard).toBeNull();
    expect((await spoken.arrayBuffer().catch((error: Error) => error)) instanceof Error).toBe(true);
    expect((await dayOf(reef, person)).used).toEqual({ input: 2, output: 3, characters: PHRASE.length });

    // Time passes: for the key, then for the reservations.
    Object.assign(openai.audio, { hear: () => [{ text: "at last", duration: 1.9 }] });
    expect((await hearBytes(reef, person, fixture("speech.ogg"), headers)).body.code).toBe("idempotency_in_progress");
    await reef.sql`update idempotency_keys set claimed_at = now() - interval '31 seconds' where user_id = ${person.id}`;
    const again = await hearBytes(reef, person, fixture("speech.ogg"), headers);
    expect(again.body).toEqual({ text: "at last", duration_seconds: 1.9 });
    await reef.sql`
      update usage_logs set expires_at = now() - interval '1 second' where user_id = ${person.id} and status = 'reserved'`;
    await until(
      "the sweepers gave it back",
      async () => (await dayOf(reef, person)).ledger.join().match(/reserved/) === null,
    );
    const { used, ledger } = await dayOf(reef, person);
    expect([used, ledger.toSorted()]).toEqual([
      { input: 2, output: 0, characters: 0 },
      [
        "tts_characters released 34",
        "voice_input_seconds committed 2",
        "voice_input_seconds released 2",
        "voice_output_seconds released 3",
      ],
    ]);
    await expectSound(other, [PHRASE]);
  } finally {
    await victim.kill();
    await other.stop();
  }
});

test("all of it left the system sound, and nothing private in the log", () => expectSound(town, [PHRASE, "secret"]));
