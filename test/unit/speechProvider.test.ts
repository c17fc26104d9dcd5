import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { parseBuffer } from "music-metadata";
import { createSpeechProvider, type SpeechFormat, type SpeechProvider } from "../../src/clients/speech.ts";
import { loadConfig } from "../../src/config.ts";
import { AppError } from "../../src/lib/errors.ts";
import { createLog } from "../../src/lib/log.ts";
import { createMetrics } from "../../src/lib/metrics.ts";
import { createFakeAudio, type HearingStep, type SpeakingStep } from "../fakes/openaiAudio.ts";
import { startFakeOpenAi, type FakeOpenAi } from "../fakes/openai.ts";
import { until } from "../harness.ts";

const KEY = "sk-a-key-that-nobody-may-see";
const TEXT = "A sentence that stays between us.";
const BASE = {
  DATABASE_URL: "postgres://u:p@127.0.0.1/x",
  REDIS_URL: "redis://127.0.0.1",
  JWT_SECRET: "x".repeat(32),
  OPENCLAW_GATEWAY_URL: "ws://127.0.0.1:1",
  OPENCLAW_GATEWAY_TOKEN: "x".repeat(16),
  OPENCLAW_GATEWAY_DIR: "gateway",
};
const fixture = (name: string) => new Uint8Array(readFileSync(join(import.meta.dir, "../fixtures/voice", name)));

let openai: FakeOpenAi;
let lines: string[];
beforeAll(async () => void (openai = await startFakeOpenAi({ apiKey: KEY })));
afterAll(() => openai.close());
beforeEach(() => {
  lines = [];
  Object.assign(openai.audio, createFakeAudio());
});
afterEach(async () => {
  await until("no call runs any more", () => openai.audio.running === 0);
  for (const secret of [KEY, TEXT, "between us", "weather", "Scripted fault"])
    expect([secret, lines.filter((line) => line.includes(secret))]).toEqual([secret, []]);
});

function connect(env: Record<string, string> = {}) {
  const config = loadConfig({ ...BASE, OPENAI_BASE_URL: openai.url, OPENAI_API_KEY: KEY, ...env });
  const metrics = createMetrics();
  const log = createLog("trace", { write: (line: string) => void lines.push(line) });
  const speech = createSpeechProvider(config, log, metrics)!;
  const failures = async () => {
    const { values } = await metrics.speechFailures.get();
    return values.filter(({ value }) => value > 0).map(({ labels, value }) => [labels.call, labels.reason, value]);
  };
  return { speech, failures };
}

const hear = (speech: SpeechProvider, name = "speech.wav", signal = new AbortController().signal) =>
  speech.transcribe({ bytes: fixture(name), fileName: `voice.${name.split(".")[1]}`, mediaType: "audio/wav", signal });
const speak = (speech: SpeechProvider, more: { format?: SpeechFormat; text?: string; signal?: AbortSignal } = {}) =>
  speech.speak({
    text: TEXT,
    voice: "nova",
    model: "tts-1",
    format: "mp3",
    speed: 1,
    signal: new AbortController().signal,
    ...more,
  });
const drain = async (stream: ReadableStream<Uint8Array>) => Buffer.from(await new Response(stream).arrayBuffer());

/** The code and the extras of what a call throws. */
async function refusalOf(call: Promise<unknown>): Promise<unknown[]> {
  const error = await call.then(
    () => new Error("it was no error"),
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof AppError)) throw error;
  expect(error.message).not.toMatch(/Scripted|provider|openai/i);
  return [error.code, error.extras.retry_after];
}

/** Answers each call with the next list of steps; the last one stays. */
function inTurn<S>(...answers: S[][]): () => S[] {
  let n = 0;
  return () => answers[Math.min(n++, answers.length - 1)]!;
}

describe("transcription", () => {
  test("the words and the length, in each format; the file arrives as it was sent", async () => {
    const { speech } = connect();
    for (const name of ["speech.wav", "speech.mp3", "speech.m4a", "speech.webm", "speech.ogg", "speech.flac"]) {
      const { text, durationSeconds, noSpeech } = await hear(speech, name);
      expect([text.length > 10, noSpeech, durationSeconds! > 1]).toEqual([true, false, true]);
    }
    expect(await hear(speech)).toEqual({
      text: "what is the weather tomorrow",
      durationSeconds: 2.235,
      noSpeech: false,
    });
    expect(openai.audio.transcriptionCalls.at(-1)).toMatchObject({
      model: "whisper-1",
      responseFormat: "verbose_json",
      fileName: "voice.wav",
      sha256: createHash("sha256").update(fixture("speech.wav")).digest("hex"),
      bytes: fixture("speech.wav").length,
    });
  });

  test("models that only speak json: the words, and no length where they report tokens", async () => {
    const { speech } = connect({ TRANSCRIPTION_MODEL: "gpt-4o-mini-transcribe" });
    expect(await hear(speech)).toEqual({
      text: "what is the weather tomorrow",
      durationSeconds: null,
      noSpeech: false,
    });
    const usage = { type: "duration", seconds: 3 };
    openai.audio.hear = () => [{ body: JSON.stringify({ text: "hi", usage }) }];
    expect(await hear(speech)).toEqual({ text: "hi", durationSeconds: 3, noSpeech: false });
    expect(openai.audio.transcriptionCalls.map((call) => call.responseFormat)).toEqual(["json", "json"]);
  });

  test("nobody spoke: no text, or Whisper's doubt in every segment; loud doubt alone is none", async () => {
    const { speech } = connect();
    expect(await hear(speech, "silence.wav")).toMatchObject({ text: "", noSpeech: true });
    const thanks = (noSpeechProb: number, avgLogprob: number) => {
      openai.audio.hear = () => [{ text: "Thank you.", noSpeechProb, avgLogprob }];
      return hear(speech);
    };
    expect(await thanks(0.9, -1.4)).toMatchObject({ text: "", noSpeech: true });
    expect(await thanks(0.9, -0.2)).toMatchObject({ text: "Thank you.", noSpeech: false });
    expect(await thanks(0.2, -1.4)).toMatchObject({ text: "Thank you.", noSpeech: false });
  });

  test("an odd length is none; one written as text is one", async () => {
    const { speech } = connect();
    for (const [duration, read] of [
      [-3, null],
      ["soon", null],
      [null, null],
      [[], null],
      ["2.50", 2.5],
      [0, 0],
    ]) {
      openai.audio.hear = () => [{ text: "hi", duration }];
      expect([duration, (await hear(speech)).durationSeconds]).toEqual([duration, read]);
    }
  });

  test("what can't be read is the sender's fault and no alarm; too short to hold a word is silence", async () => {
    const { speech, failures } = connect();
    const send = (bytes: Uint8Array, fileName: string) =>
      speech.transcribe({ bytes, fileName, mediaType: "audio/wav", signal: new AbortController().signal });
    expect(await refusalOf(send(Buffer.from("PK\u0003\u0004 not a sound"), "voice.wav"))).toEqual([
      "unsupported_audio",
      undefined,
    ]);
    const refuse = (status: number, message: string, code?: string) => {
      openai.audio.hear = () => [{ status, message, ...(code ? { code } : {}) }];
    };
    refuse(400, "Audio file might be corrupted or unsupported", "invalid_value");
    expect(await refusalOf(hear(speech))).toEqual(["unsupported_audio", undefined]);
    refuse(400, "audio duration 1500.5 seconds is longer than 1400 seconds which is the maximum for this model");
    expect(await refusalOf(hear(speech))).toEqual(["unsupported_audio", undefined]);
    refuse(413, "Maximum content size limit (26214400) exceeded");
    expect(await refusalOf(hear(speech))).toEqual(["body_too_large", undefined]);
    refuse(400, "Audio file is too short. Minimum audio length is 0.1 seconds.", "audio_too_short");
    expect(await hear(speech)).toEqual({ text: "", durationSeconds: null, noSpeech: true });
    expect([lines, await failures()]).toEqual([[], []]);
  });

  test("an answer that is none: cut, no JSON, no text", async () => {
    const { speech, failures } = connect();
    for (const steps of [
      [{ body: '{"text": "wh' }, { cut: true }],
      [{ body: '{"text": "what is the weather' }],
      [{ body: '{"words": "weather"}' }],
      [{ body: "" }],
    ] as HearingStep[][]) {
      openai.audio.hear = () => steps;
      expect((await refusalOf(hear(speech)))[0]).toBe("voice_unavailable");
    }
    expect(await failures()).toEqual([
      ["transcribe", "connection", 1],
      ["transcribe", "unusable_answer", 3],
    ]);
  });
});

describe("speech", () => {
  const FORMATS: SpeechFormat[] = ["mp3", "opus", "aac", "flac", "wav", "pcm"];
  for (const format of FORMATS) {
    test(`${format}: the first bytes arrive while the provider still holds back the second`, async () => {
      const { promise, resolve: goOn } = Promise.withResolvers<void>();
      openai.audio.speak = async function* () {
        yield { seconds: 1 };
        await promise;
        yield { seconds: 2 };
      };
      const reader = (await speak(connect().speech, { format })).getReader();
      const first = (await reader.read()).value!;
      const [call] = openai.audio.speechCalls;
      expect([call?.state, first.length]).toEqual(["running", call!.bytesSent]);
      expect(call).toMatchObject({ text: TEXT, voice: "nova", model: "tts-1", format, speed: 1 });
      goOn();
      let bytes = first.length;
      for (let next = await reader.read(); !next.done; next = await reader.read()) bytes += next.value.length;
      expect([bytes, call!.state, bytes > 2 * first.length]).toEqual([call!.bytesSent, "done", true]);
    });
  }

  test("all bytes in order, as long as the text", async () => {
    const { speech } = connect();
    const sound = await drain(await speak(speech, { format: "wav", text: "x".repeat(150) }));
    expect([sound.subarray(0, 4).toString(), sound.readUInt32LE(40), sound.length]).toEqual([
      "RIFF",
      0xffffffff,
      44 + 10 * 48_000,
    ]);
    for (let second = 1; second < 10; second++)
      expect(sound.subarray(44 + second * 48_000, 44 + (second + 1) * 48_000).equals(sound.subarray(44, 48_044))).toBe(
        true,
      );
  });

  test("the double's sound is real, and as long as its text", async () => {
    const { speech } = connect();
    for (const format of ["mp3", "opus", "aac", "wav"] as const) {
      const sound = await drain(await speak(speech, { format, text: "x".repeat(150) }));
      const { duration } = (await parseBuffer(sound, undefined, { duration: true })).format;
      expect([format, Math.round(duration ?? 0)]).toEqual([format, 10]);
    }
    const flac = await drain(await speak(speech, { format: "flac", text: "x".repeat(150) }));
    expect((await parseBuffer(flac)).format).toMatchObject({
      container: "FLAC",
      sampleRate: 24_000,
      bitsPerSample: 16,
    });
  });

  test("cancelling the stream aborts the call, also between two chunks", async () => {
    const { speech, failures } = connect();
    openai.audio.speak = () => [{ seconds: 1 }, { hang: true }];
    for (const waits of [false, true]) {
      const stream = await speak(speech);
      const reader = stream.getReader();
      await reader.read();
      const pending = waits ? reader.read() : null;
      await reader.cancel("enough");
      expect(pending === null || (await pending).done).toBe(true);
      await until("the provider knows", () => openai.audio.speechCalls.at(-1)?.state === "left");
    }
    expect([lines, await failures()]).toEqual([[], []]);
  });

  test("the caller's signal: thrown as it is, before the first byte and after it", async () => {
    const { speech, failures } = connect();
    openai.audio.speak = () => [{ hang: true }];
    const reason = new Error("barge-in");
    const early = new AbortController();
    const call = speak(speech, { signal: early.signal });
    await until("it is asked", () => openai.audio.running === 1);
    early.abort(reason);
    expect(await call.catch((error: unknown) => error)).toBe(reason);
    await until("the provider knows", () => openai.audio.speechCalls[0]?.state === "left");

    openai.audio.speak = () => [{ seconds: 1 }, { hang: true }];
    const late = new AbortController();
    const reader = (await speak(speech, { signal: late.signal })).getReader();
    await reader.read();
    late.abort(reason);
    await until("the provider knows", () => openai.audio.speechCalls[1]?.state === "left");
    expect(await reader.read().catch((error: unknown) => error)).toBe(reason);
    expect(await speak(speech, { signal: late.signal }).catch((error: unknown) => error)).toBe(reason);
    expect([openai.audio.speechCalls.length, lines, await failures()]).toEqual([2, [], []]);
  });

  test("cut or silent in the middle: the stream errors, what came before is there", async () => {
    const { speech, failures } = connect({ VOICE_FIRST_BYTE_MS: "1000" });
    for (const fault of [{ cut: true }, { hang: true }] as SpeakingStep[]) {
      openai.audio.speak = () => [{ seconds: 1 }, { delayMs: 50 }, fault];
      const reader = (await speak(speech)).getReader();
      expect((await reader.read()).value!.length).toBeGreaterThan(1000);
      expect(await refusalOf(reader.read())).toEqual(["voice_unavailable", 5]);
    }
    expect(await failures()).toEqual([
      ["speak", "connection", 1],
      ["speak", "timeout", 1],
    ]);
  });

  test("a client that reads slowly uses up no time of the provider's", async () => {
    const { speech } = connect({ VOICE_FIRST_BYTE_MS: "1000", VOICE_TIMEOUT_MS: "1000" });
    const { promise, resolve: goOn } = Promise.withResolvers<void>();
    openai.audio.speak = async function* () {
      yield { seconds: 1 };
      await promise;
      yield { seconds: 1 };
    };
    const reader = (await speak(speech)).getReader();
    await reader.read();
    // Nothing can be waited for: that the provider's time stands still is what is tested.
    await Bun.sleep(1100);
    goOn();
    expect((await reader.read()).done).toBe(false);
    expect((await reader.read()).done).toBe(true);
  });
});

describe("trouble with the provider", () => {
  test("a refused key: an alarm with one fixed sentence, no retry, and nothing of ours in it", async () => {
    const { speech, failures } = connect();
    openai.audio.hear = () => [{ status: 401, message: `Incorrect API key provided: ${KEY}.` }];
    openai.audio.speak = () => [{ status: 403, message: TEXT }];
    expect(await refusalOf(hear(speech))).toEqual(["voice_unavailable", undefined]);
    expect(await refusalOf(speak(speech))).toEqual(["voice_unavailable", undefined]);
    expect(await refusalOf(hear(connect({ OPENAI_API_KEY: "sk-wrong" }).speech))).toEqual([
      "voice_unavailable",
      undefined,
    ]);
    expect([openai.audio.transcriptionCalls.length, openai.audio.speechCalls.length]).toEqual([1, 1]);
    expect(lines.map((line) => [JSON.parse(line).level, JSON.parse(line).msg])).toEqual(
      Array(3).fill(["error", "the speech provider refuses our key"]),
    );
    expect(await failures()).toEqual([
      ["transcribe", "key_refused", 1],
      ["speak", "key_refused", 1],
    ]);
  });

  test("429 with Retry-After: asked again, then it works", async () => {
    const { speech } = connect();
    const refusal = { status: 429, retryAfter: 0 };
    openai.audio.hear = inTurn<HearingStep>([refusal], [refusal], [{ text: "at last" }]);
    expect((await hear(speech)).text).toBe("at last");
    openai.audio.speak = inTurn<SpeakingStep>([refusal], [{ cut: true }], [{ seconds: 1 }]);
    expect((await drain(await speak(speech))).length).toBeGreaterThan(1000);
    expect([openai.audio.transcriptionCalls.length, openai.audio.speechCalls.length]).toEqual([3, 3]);
    expect(openai.audio.transcriptionCalls.map((call) => call.bytes)).toEqual(
      Array(3).fill(fixture("speech.wav").length),
    );
    expect(lines).toEqual([]);
  });

  test("three times 500: the user waits, as long as the provider asks and at most a minute", async () => {
    const { speech, failures } = connect();
    const refuse = (status: number, ...retryAfter: (number | undefined)[]) =>
      inTurn<HearingStep>(...retryAfter.map((s) => [{ status, ...(s === undefined ? {} : { retryAfter: s }) }]));
    openai.audio.hear = refuse(500, 0, 0, undefined);
    expect(await refusalOf(hear(speech))).toEqual(["voice_unavailable", 5]);
    openai.audio.hear = refuse(503, 0, 0, 7);
    expect(await refusalOf(hear(speech))).toEqual(["voice_unavailable", 7]);
    expect(openai.audio.transcriptionCalls.length).toBe(6);
    // Longer than anybody waits here: told at once, not tried again.
    openai.audio.hear = refuse(429, 30);
    expect(await refusalOf(hear(speech))).toEqual(["voice_unavailable", 30]);
    openai.audio.hear = refuse(429, 600);
    expect(await refusalOf(hear(speech))).toEqual(["voice_unavailable", 60]);
    expect(openai.audio.transcriptionCalls.length).toBe(8);
    expect(await failures()).toEqual([
      ["transcribe", "server_error", 2],
      ["transcribe", "rate_limited", 2],
    ]);
  });

  test("money used up: an operator is told", async () => {
    const { speech, failures } = connect();
    openai.audio.speak = () => [{ status: 429, retryAfter: 0, code: "insufficient_quota" }];
    expect(await refusalOf(speak(speech))).toEqual(["voice_unavailable", undefined]);
    expect(await failures()).toEqual([["speak", "quota_used_up", 1]]);
    expect(JSON.parse(lines[0]!)).toMatchObject({ level: "error", msg: "the speech provider's quota is used up" });
  });

  test("a hang: given up after our time and not tried again", async () => {
    const { speech, failures } = connect({ VOICE_FIRST_BYTE_MS: "200" });
    openai.audio.hear = openai.audio.speak = () => [{ hang: true }];
    expect(await refusalOf(speak(speech))).toEqual(["voice_unavailable", 5]);
    const whole = connect({ VOICE_TIMEOUT_MS: "200" });
    expect(await refusalOf(hear(whole.speech))).toEqual(["voice_unavailable", 5]);
    await until("the provider knows", () => openai.audio.running === 0);
    expect([openai.audio.speechCalls.length, openai.audio.transcriptionCalls.length]).toEqual([1, 1]);
    expect([await failures(), await whole.failures()]).toEqual([
      [["speak", "timeout", 1]],
      [["transcribe", "timeout", 1]],
    ]);
  });

  test("a slow first byte within our time is none", async () => {
    openai.audio.speak = () => [{ delayMs: 100 }, { seconds: 1 }];
    expect((await drain(await speak(connect().speech))).length).toBeGreaterThan(1000);
  });

  test("a request that it does not like, with our text in its answer: an alarm without it", async () => {
    const { speech } = connect();
    expect(await refusalOf(speak(speech, { text: TEXT.repeat(200) }))).toEqual(["voice_unavailable", undefined]);
    const unknown = connect({ TRANSCRIPTION_MODEL: "whisper-9" });
    expect(await refusalOf(hear(unknown.speech))).toEqual(["voice_unavailable", undefined]);
    expect(lines.map((line) => JSON.parse(line))).toMatchObject([
      { level: "error", msg: "the speech provider refuses our request", call: "speak", status: 400 },
      { level: "error", msg: "the speech provider refuses our request", status: 404, code: "model_not_found" },
    ]);
  });

  test("nobody there: tried again, then unavailable", async () => {
    const { speech, failures } = connect({ OPENAI_BASE_URL: "http://127.0.0.1:1/v1" });
    expect(await refusalOf(hear(speech))).toEqual(["voice_unavailable", 5]);
    expect(await failures()).toEqual([["transcribe", "connection", 1]]);
  });

  test("without a key there is no provider", () => {
    expect(createSpeechProvider(loadConfig(BASE), createLog("silent"))).toBeNull();
  });
});

describe("a server in between that answers in its own way", () => {
  let answer: (response: ServerResponse) => void;
  const server = createServer((request, response) => void request.resume().on("end", () => answer(response)));
  let env: Record<string, string>;
  beforeAll(async () => {
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    env = { OPENAI_BASE_URL: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1` };
  });
  afterAll(() => {
    server.closeAllConnections();
    server.close();
  });

  test("headers and then nothing: our time runs on", async () => {
    const { speech, failures } = connect({ ...env, VOICE_FIRST_BYTE_MS: "200" });
    const closed = Promise.withResolvers<void>();
    answer = (response) => {
      response.on("close", closed.resolve).writeHead(200, { "content-type": "audio/mpeg" });
      response.flushHeaders();
    };
    expect(await refusalOf(speak(speech))).toEqual(["voice_unavailable", 5]);
    await closed.promise;
    expect(await failures()).toEqual([["speak", "timeout", 1]]);
  });

  test("a page, JSON, or nothing at all where sound should be", async () => {
    const { speech, failures } = connect(env);
    for (const [type, body] of [
      ["text/html", "<h1>Sign in to this network</h1>"],
      ["application/json", "{}"],
      ["audio/mpeg", ""],
    ] as const) {
      answer = (response) => void response.writeHead(200, { "content-type": type }).end(body);
      expect(await refusalOf(speak(speech))).toEqual(["voice_unavailable", undefined]);
    }
    expect(await failures()).toEqual([["speak", "unusable_answer", 3]]);
  });

  test("a redirect is not followed: neither key nor text go elsewhere", async () => {
    const { speech } = connect(env);
    answer = (response) => void response.writeHead(307, { location: `${openai.url}/audio/speech` }).end();
    expect(await refusalOf(speak(speech))).toEqual(["voice_unavailable", undefined]);
    expect(openai.audio.speechCalls).toEqual([]);
  });
});
