import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { measureSpeech } from "../../src/lib/audio/measure.ts";
import { SPEECH_FORMATS, SPEECH_TYPES, type SpeechFormat } from "../../src/protocol/voice.ts";
import { speak } from "../../src/services/speaking.ts";
import { isRefused } from "../../src/services/usage.ts";
import type { SpeakingStep } from "../fakes/openaiAudio.ts";
import { makeAssistant, makeUser, type TestUser } from "../factories.ts";
import { until } from "../harness.ts";
import {
  costOf,
  dayOf,
  expectFree,
  expectSound,
  readAnswer,
  send,
  startVoiceTown,
  usePlan,
  useUp,
  type VoiceTown,
} from "./voiceTown.ts";

const PHRASE = "The heron that nobody may read about stands in the reed.";
/** 150 characters: ten seconds of the double's, eleven reserved. */
const TEXT = `${PHRASE} `.repeat(3).slice(0, 149).trim().padEnd(149, "x").concat(".");

let town: VoiceTown;
let user: TestUser;
beforeAll(async () => void (town = await startVoiceTown()));
afterAll(() => town.stop());
beforeEach(async () => {
  town.reset();
  user = await makeUser(town.reef);
});

const calls = () => town.openai.audio.speechCalls;
const script = (steps: SpeakingStep[]) => void (town.openai.audio.speak = () => steps);
const ask = (body: object, headers: Record<string, string> = {}, signal?: AbortSignal) =>
  send(town.reef, user, "speak", JSON.stringify(body), { "content-type": "application/json", ...headers }, signal);
const say = async (body: object, headers?: Record<string, string>) => readAnswer(await ask(body, headers));
const refusal = async (body: object) => {
  const answer = await say(body);
  return [answer.status, answer.body.code];
};
const bytesOf = async (response: Response) => new Uint8Array(await response.arrayBuffer());

/** Speaks a second, and the rest when it is told to. */
function inTwoParts(): () => void {
  const { promise, resolve } = Promise.withResolvers<void>();
  town.openai.audio.speak = async function* ({ seconds }) {
    yield { seconds: 1 };
    await promise;
    yield { seconds: Math.max(0.1, seconds - 1) };
  };
  return resolve;
}

describe("each format", () => {
  for (const format of SPEECH_FORMATS) {
    test(`${format}: as JSON, and streamed; playable, as long as it says, charged by what came`, async () => {
      const spoken = await say({ text: TEXT, format });
      expect([spoken.status, Object.keys(spoken.body)]).toEqual([
        200,
        ["audio", "format", "character_count", "duration_seconds"],
      ]);
      expect(spoken.body).toMatchObject({ format, character_count: 150 });
      expect(Math.abs(spoken.body.duration_seconds - 10)).toBeLessThan(0.2);
      const sound = new Uint8Array(Buffer.from(spoken.body.audio, "base64"));
      expect(await measureSpeech(sound, format)).toBeCloseTo(spoken.body.duration_seconds, 2);

      const streamed = await ask({ text: TEXT, format }, { accept: "audio/*" });
      expect([streamed.status, streamed.headers.get("content-type")]).toEqual([200, SPEECH_TYPES[format]]);
      expect([streamed.headers.get("transfer-encoding"), streamed.headers.get("content-length")]).toEqual([
        "chunked",
        null,
      ]);
      expect(Buffer.compare(await bytesOf(streamed), sound)).toBe(0);
      expect(calls().map((call) => [call.format, call.bytesSent])).toEqual(Array(2).fill([format, sound.length]));

      const seconds = Math.ceil(spoken.body.duration_seconds);
      expect(await dayOf(town.reef, user)).toEqual({
        used: { input: 0, output: 2 * seconds, characters: 300 },
        ledger: [1, 2].flatMap(() => ["tts_characters committed 150", `voice_output_seconds committed ${seconds}`]),
      });
      expect(spoken.headers.get("x-ratelimit-voice-output-remaining")).toBe(String(120 - seconds));
      // When a stream begins, what it may take is taken.
      expect(streamed.headers.get("x-ratelimit-voice-output-remaining")).toBe(String(120 - seconds - 11));
      expect(streamed.headers.get("x-ratelimit-tts-remaining")).toBe("4700");
    });
  }

  test("the beginning reaches the client before the provider goes on; minutes and characters are held meanwhile", async () => {
    for (const format of SPEECH_FORMATS) {
      await town.reef.sql`delete from usage_logs where user_id = ${user.id}`;
      await town.reef.sql`delete from daily_usage where user_id = ${user.id}`;
      const goOn = inTwoParts();
      // A key changes nothing, and does not hold anything back either.
      const response = await ask({ text: TEXT, format }, { accept: "audio/*", "idempotency-key": "k" });
      const reader = response.body!.getReader();
      const first = (await reader.read()).value!;
      expect([format, first.length > 100, calls().at(-1)!.state]).toEqual([format, true, "running"]);
      expect(await dayOf(town.reef, user)).toEqual({
        used: { input: 0, output: 11, characters: 150 },
        ledger: ["tts_characters reserved 150", "voice_output_seconds reserved 11"],
      });
      goOn();
      const rest: Uint8Array[] = [];
      for (let next = await reader.read(); !next.done; next = await reader.read()) rest.push(next.value);
      expect(await measureSpeech(Buffer.concat([first, ...rest]), format)).toBeCloseTo(10, 0);
      expect((await dayOf(town.reef, user)).ledger.filter((row) => row.includes("reserved"))).toEqual([]);
    }
  });

  test("what Accept and format ask for", async () => {
    const asked = async (accept: string | null, format?: SpeechFormat) => {
      const headers: Record<string, string> = accept === null ? {} : { accept };
      const response = await ask({ text: "Hi.", ...(format ? { format } : {}) }, headers);
      await bytesOf(response);
      return `${response.headers.get("content-type")} ${calls().at(-1)!.format}`;
    };
    for (const [accept, format, answer] of [
      [null, undefined, "application/json mp3"],
      ["*/*", undefined, "application/json mp3"],
      ["application/json, text/plain, */*", "wav", "application/json wav"],
      ["application/json, audio/*;q=0.5", undefined, "application/json mp3"],
      ["audio/*;q=0", undefined, "application/json mp3"],
      ["nonsense", undefined, "application/json mp3"],
      ["audio/*", undefined, "audio/mpeg mp3"],
      ["AUDIO/*", "opus", "audio/ogg opus"],
      ["audio/mpeg", undefined, "audio/mpeg mp3"],
      ["audio/mp3", undefined, "audio/mpeg mp3"],
      ["audio/x-wav", undefined, "audio/wav wav"],
      ["audio/aac, */*;q=0.1", undefined, "audio/aac aac"],
      ["audio/ogg;codecs=opus", undefined, "audio/ogg opus"],
      ["audio/*;q=0.3, audio/flac;q=0.8, application/json;q=0.2", undefined, "audio/flac flac"],
      ["audio/flac", "mp3", "audio/mpeg mp3"],
    ] as const)
      expect([accept, await asked(accept, format)]).toEqual([accept, answer]);
  });
});

describe("what is spoken, by whom", () => {
  test("Markdown by its words; what was spoken is counted", async () => {
    const text = "# Hello 👋\n\nSee **[the page](https://example.org)**.\n\n```sh\nrm -rf /\n```";
    const { body } = await say({ text });
    expect([body.character_count, calls()[0]!.text]).toEqual([20, "Hello.\nSee the page."]);
    expect((await dayOf(town.reef, user)).used.characters).toBe(20);
  });

  test("speed, and the model of the plan", async () => {
    await say({ text: TEXT, speed: 2 });
    expect(calls()[0]).toMatchObject({ speed: 2, model: "tts-1", voice: "nova" });
    expect((await dayOf(town.reef, user)).used.output).toBe(5);
    await usePlan(town.reef, user, "premium");
    await say({ text: TEXT, voice: "onyx" });
    expect(calls()[1]).toMatchObject({ speed: 1, model: "tts-1-hd", voice: "onyx" });
  });

  test("the assistant's voice by default; one that a downgrade took away gives way to the plan's first", async () => {
    await usePlan(town.reef, user, "pro");
    const { agent_id, id } = await makeAssistant(user, { voice: "echo" });
    await say({ text: "Hi.", agent_id });
    await say({ text: "Hi.", agent_id, voice: "fable" });
    await say({ text: "Hi." });
    await usePlan(town.reef, user, "free");
    await say({ text: "Hi.", agent_id });
    expect(calls().map((call) => call.voice)).toEqual(["echo", "fable", "nova", "nova"]);
    await user.call("POST", `/api/assistants/${id}/pause`);
    expect((await say({ text: "Hi.", agent_id })).status).toBe(200);
    await user.call("DELETE", `/api/assistants/${id}`);
    expect(await refusal({ text: "Hi.", agent_id })).toEqual([404, "assistant_not_found"]);
  });

  test("a voice outside the plan, or of nobody; an assistant of somebody else's, or of nobody's", async () => {
    const other = await makeUser(town.reef);
    const { agent_id } = await makeAssistant(other, { voice: "alloy" });
    const outside = await say({ text: "Hi.", voice: "echo" });
    expect([outside.status, outside.body.code, outside.body.upgrade_to]).toEqual([403, "voice_not_in_plan", "pro"]);
    for (const voice of ["marin", "Nova", "../../etc"])
      expect([voice, await refusal({ text: "Hi.", voice })]).toEqual([voice, [403, "voice_not_in_plan"]]);
    expect(await refusal({ text: "Hi.", agent_id })).toEqual([404, "assistant_not_found"]);
    expect(await refusal({ text: "Hi.", agent_id: "agent_none" })).toEqual([404, "assistant_not_found"]);
    expect(calls()).toEqual([]);
    await expectFree(town.reef, user);
    await expectFree(town.reef, other);
  });

  test("nothing that can be spoken: emoji, code, marks", async () => {
    for (const text of ["👨‍👩‍👧‍👦 🎉", "```\ncode\n```", "---", " \n ", "?!"])
      expect([text, await refusal({ text })]).toEqual([text, [400, "nothing_to_speak"]]);
    expect(calls()).toEqual([]);
    await expectFree(town.reef, user);
  });

  test("fields at, under and over their limits", async () => {
    await usePlan(town.reef, user, "premium");
    expect((await say({ text: "a".repeat(4096) })).body.character_count).toBe(4096);
    // More is added for the ear than the marks took, and it is still no more than the provider takes.
    expect((await say({ text: "|a|b\n|-|-\n|c|d\n\n".repeat(300).slice(0, 4096), speed: 4 })).status).toBe(200);
    for (const [body, path] of [
      [{ text: "a".repeat(4097) }, "text"],
      [{ text: "a".repeat(100_000) }, "text"],
      [{ text: "" }, "text"],
      [{ text: "a\u0000b" }, "text"],
      [{ text: 5 }, "text"],
      [{}, "text"],
      [{ text: "a", speed: 0.24 }, "speed"],
      [{ text: "a", speed: 4.01 }, "speed"],
      [{ text: "a", speed: "1" }, "speed"],
      [{ text: "a", format: "ogg" }, "format"],
      [{ text: "a", voice: "" }, "voice"],
      [{ text: "a", voice: "v".repeat(31) }, "voice"],
      [{ text: "a", agent_id: "" }, "agent_id"],
      [{ text: "a", model: "tts-1" }, "model"],
    ] as const) {
      const answer = await say(body);
      expect([body, answer.status, answer.body.code, answer.body.details[0].path]).toEqual([
        body,
        400,
        "validation_failed",
        path,
      ]);
    }
    expect(calls().length).toBe(2);
  });
});

describe("what is held and charged", () => {
  test("over the rest, of characters or of minutes: refused before anything is sent", async () => {
    await useUp(town.reef, user, { characters: 4900 });
    const characters = await say({ text: TEXT });
    expect([characters.status, characters.body]).toMatchObject([
      429,
      { code: "voice_limit_reached", kind: "tts_characters", limit: 5000, used: 4900, upgrade_to: "pro" },
    ]);
    expect(characters.headers.get("retry-after")).toBe(String(characters.body.retry_after));
    expect(characters.headers.get("x-ratelimit-tts-remaining")).toBe("100");
    const second = await makeUser(town.reef);
    await useUp(town.reef, second, { output: 110 });
    const answer = await readAnswer(
      await send(town.reef, second, "speak", JSON.stringify({ text: TEXT }), {
        "content-type": "application/json",
        accept: "audio/*",
      }),
    );
    expect([answer.status, answer.body.kind, answer.body.used, answer.body.limit]).toEqual([
      429,
      "voice_output_seconds",
      110,
      120,
    ]);
    expect(calls()).toEqual([]);
    // What is refused for one kind takes nothing of the other.
    expect((await dayOf(town.reef, user)).used).toEqual({ input: 0, output: 0, characters: 4900 });
    expect((await dayOf(town.reef, second)).used).toEqual({ input: 0, output: 110, characters: 0 });
  });

  test("twenty-five at once: as many as fit begin, the others send nothing; what was too much comes back", async () => {
    const { promise, resolve: goOn } = Promise.withResolvers<void>();
    town.openai.audio.speak = async function* ({ seconds }) {
      await promise;
      yield { seconds };
    };
    let refused = 0;
    // Eleven seconds each, of 120.
    const answers = Array.from({ length: 25 }, () =>
      say({ text: TEXT }).then((answer) => {
        if (answer.status === 429) refused += 1;
        return answer;
      }),
    );
    await until("all others are refused", () => refused === 15);
    expect([calls().length, (await dayOf(town.reef, user)).used]).toEqual([
      10,
      { input: 0, output: 110, characters: 1500 },
    ]);
    goOn();
    const spoken = (await Promise.all(answers)).filter(({ status }) => status === 200);
    const seconds = spoken.reduce((sum, { body }) => sum + Math.ceil(body.duration_seconds), 0);
    expect((await dayOf(town.reef, user)).used).toEqual({ input: 0, output: seconds, characters: 1500 });
  });

  test("longer than reserved: charged as it is, never above the limit", async () => {
    await useUp(town.reef, user, { output: 100 });
    script([{ seconds: 30 }]);
    expect((await say({ text: TEXT, format: "wav" })).body.duration_seconds).toBeCloseTo(30, 3);
    expect((await dayOf(town.reef, user)).used.output).toBe(120);
    expect(await refusal({ text: "Hi." })).toEqual([429, "voice_limit_reached"]);
  });

  test("an Idempotency-Key changes nothing: each call speaks and is charged", async () => {
    const key = { "idempotency-key": "same" };
    const answers = [
      await say({ text: "One." }, key),
      await say({ text: "One." }, key),
      await say({ text: "Two." }, key),
    ];
    expect(answers.map(({ status }) => status)).toEqual([200, 200, 200]);
    expect([calls().length, (await dayOf(town.reef, user)).used.characters]).toEqual([3, 12]);
    expect((await town.reef.sql`select 1 from idempotency_keys where user_id = ${user.id}`).length).toBe(0);
  });
});

describe("a client that hangs up", () => {
  const gone = () => until("the provider knows", () => calls()[0]?.state === "left");
  const settled = () =>
    until("it is settled", async () => (await dayOf(town.reef, user)).ledger.every((row) => !row.includes("reserved")));

  for (const format of ["mp3", "pcm", "wav", "opus"] as const) {
    test(`${format}: in the middle of a stream, pays for what came`, async () => {
      script([{ seconds: 3 }, { hang: true }]);
      const hangUp = new AbortController();
      const response = await ask({ text: TEXT, format }, { accept: "audio/*" }, hangUp.signal);
      await response.body!.getReader().read();
      hangUp.abort();
      await gone();
      await settled();
      const { used } = await dayOf(town.reef, user);
      // Three seconds of eleven, and a frame more or less.
      expect(used.output).toBeOneOf([3, 4]);
      expect(used.characters).toBeWithin(40, 43);
      // The provider was asked for all of it.
      expect(await costOf(town.reef, user)).toBe(150 * 15);
    });
  }

  test("while the recording is collected for JSON: the same", async () => {
    script([{ seconds: 3 }, { hang: true }]);
    const hangUp = new AbortController();
    const response = ask({ text: TEXT, format: "pcm" }, {}, hangUp.signal).catch((error: Error) => error);
    await until("it speaks", () => (calls()[0]?.bytesSent ?? 0) > 0);
    hangUp.abort();
    await gone();
    await settled();
    // What was on its way between the provider and us then is not charged.
    expect((await dayOf(town.reef, user)).used.output).toBeWithin(0, 4);
    expect((await response) instanceof Error).toBe(true);
  });

  test("before the first byte: pays nothing", async () => {
    script([{ hang: true }]);
    const hangUp = new AbortController();
    const response = ask({ text: TEXT }, { accept: "audio/*" }, hangUp.signal).catch(() => null);
    await until("it is asked", () => calls().length === 1);
    hangUp.abort();
    await response;
    await gone();
    await settled();
    await expectFree(town.reef, user);
  });

  /** Without HTTP between. */
  const begin = async (signal: AbortSignal) => {
    const how = { text: TEXT, voice: null, assistantVoice: null, format: "pcm", speed: 1 } as const;
    const speech = await speak(town.reef.deps, { ...how, userId: user.id, signal });
    return isRefused(speech) ? expect.unreachable() : speech;
  };

  test("who cancels a read that waits has not heard the end", async () => {
    script([{ seconds: 2 }, { hang: true }]);
    const speech = await begin(new AbortController().signal);
    const reader = speech.stream.getReader();
    expect((await reader.read()).value!.length).toBe(96_000);
    const next = reader.read();
    // So that it is passed on to the provider's stream.
    await new Promise((resolve) => setImmediate(resolve));
    await reader.cancel();
    expect((await next).done).toBe(true);
    expect(await speech.ended).toEqual({ durationSeconds: 2 });
    expect((await dayOf(town.reef, user)).used).toEqual({ input: 0, output: 2, characters: 28 });
    await gone();
  });

  test("a stream that nobody reads ends with the signal, too", async () => {
    script([{ seconds: 2 }, { hang: true }]);
    const over = new AbortController();
    const speech = await begin(over.signal);
    const reader = speech.stream.getReader();
    expect((await reader.read()).value!.length).toBe(96_000);
    over.abort(new Error("enough"));
    expect(await speech.ended).toEqual({ durationSeconds: 2 });
    expect((await dayOf(town.reef, user)).used).toEqual({ input: 0, output: 2, characters: 28 });
    expect(await reader.read().catch((error: Error) => error.message)).toBe("enough");
  });
});

describe("a provider that breaks off", () => {
  for (const fault of [{ cut: true }, { hang: true }] as SpeakingStep[]) {
    test(`${JSON.stringify(fault)} in the middle: JSON is 503, a stream has no clean end; all comes back`, async () => {
      const impatient = await startVoiceTown({ VOICE_FIRST_BYTE_MS: "300" });
      try {
        impatient.openai.audio.speak = () => [{ seconds: 2 }, { delayMs: 30 }, fault];
        const person = await makeUser(impatient.reef);
        const body = JSON.stringify({ text: TEXT });
        const type = { "content-type": "application/json" };
        const answer = await readAnswer(await send(impatient.reef, person, "speak", body, type));
        expect([answer.status, answer.body.code, answer.body.retry_after]).toEqual([503, "voice_unavailable", 5]);
        expect(answer.headers.get("retry-after")).toBe("5");
        const response = await send(impatient.reef, person, "speak", body, { ...type, accept: "audio/*" });
        expect(response.status).toBe(200);
        expect((await response.arrayBuffer().catch((error: Error) => error)) instanceof Error).toBe(true);
        await expectFree(impatient.reef, person);
        expect(await costOf(impatient.reef, person)).toBe(2 * 150 * 15);
        await expectSound(impatient, [PHRASE]);
      } finally {
        await impatient.stop();
      }
    });
  }
});

test("HEAD and OPTIONS do nothing", async () => {
  for (const method of ["HEAD", "OPTIONS", "GET"]) {
    const response = await fetch(`${town.reef.url}/api/voice/speak`, {
      method,
      headers: { authorization: `Bearer ${user.token}`, accept: "audio/*" },
    });
    expect([method, response.status]).toEqual([method, 405]);
  }
  expect(calls()).toEqual([]);
});

test("all of it left the system sound, and nothing that was spoken in the log", () =>
  expectSound(town, [PHRASE, "heron"]));
