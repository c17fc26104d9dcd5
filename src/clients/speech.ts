import OpenAI from "openai";
import { z } from "zod";
import type { Config } from "../config.ts";
import type { Log } from "../lib/log.ts";
import type { Metrics } from "../lib/metrics.ts";
import { startSpeechCall, type SpeechCall } from "./speechCall.ts";
import { createSpeechFailures, isTooShort, UnusableAnswer, type SpeechCallKind } from "./speechFailures.ts";

export type SpeechFormat = "mp3" | "opus" | "aac" | "flac" | "wav" | "pcm";

/** What the provider heard. */
export interface Heard {
  /** Empty when nobody spoke. */
  text: string;
  /** As the provider measured it; null when it does not say. */
  durationSeconds: number | null;
  /** Whether the provider is sure that nobody spoke. */
  noSpeech: boolean;
}

/**
 * The provider of transcription and speech. Both calls throw `voice_unavailable`, `retry_after` with it where waiting
 * helps; an abort by the caller's signal is thrown as it is.
 */
export interface SpeechProvider {
  /** `fileName` tells the provider the format, e.g. voice.webm. Throws `unsupported_audio`, `body_too_large`, too. */
  transcribe(input: { bytes: Uint8Array; fileName: string; mediaType: string; signal: AbortSignal }): Promise<Heard>;
  /**
   * Resolves with the first bytes; the stream passes bytes on as they come, and errors as the call throws. Cancelling it,
   * or the signal, aborts the provider's call. `text` has 1 to 4096 characters, `speed` is 0.25 to 4.
   */
  speak(input: SpeakInput): Promise<ReadableStream<Uint8Array>>;
}

interface SpeakInput {
  text: string;
  voice: string;
  model: string;
  format: SpeechFormat;
  speed: number;
  signal: AbortSignal;
}

type SpeechConfig = Pick<
  Config,
  "OPENAI_API_KEY" | "OPENAI_BASE_URL" | "TRANSCRIPTION_MODEL" | "VOICE_TIMEOUT_MS" | "VOICE_FIRST_BYTE_MS"
>;

/** A refused or broken attempt is repeated so often; one that is silent never. */
const RETRIES = 2;
/** The first byte of a transcription is its last: long audio is given a second more for each 64 KB. */
const BYTES_A_SECOND = 64 * 1024;

/** The speech provider through OpenAI's own package. Null without OPENAI_API_KEY. */
export function createSpeechProvider(
  config: SpeechConfig,
  log: Log,
  metrics?: Pick<Metrics, "speechFailures" | "speechCalls">,
): SpeechProvider | null {
  const key = config.OPENAI_API_KEY;
  if (key === undefined) return null;
  const explain = createSpeechFailures(log, metrics);
  const { VOICE_TIMEOUT_MS: totalMs, VOICE_FIRST_BYTE_MS: silenceMs } = config;
  const fail = (kind: SpeechCallKind, call: SpeechCall, error: unknown): Error => {
    call.end();
    if (!call.wasSilent()) call.signal.throwIfAborted();
    const explained = explain(kind, call, error);
    call.abort();
    return explained;
  };
  return {
    async transcribe(input) {
      const call = startSpeechCall(input.signal, totalMs);
      const limitMs = silenceMs + (input.bytes.length / BYTES_A_SECOND) * 1000;
      try {
        const answer = await call.wait(limitMs, () => askWhatWasSaid(connect(config, key, call), config, call, input));
        const heard = readHeard(answer);
        metrics?.speechCalls.inc({ call: "transcribe" });
        return heard;
      } catch (error) {
        if (isTooShort(error)) return { text: "", durationSeconds: null, noSpeech: true };
        throw fail("transcribe", call, error);
      } finally {
        call.end();
      }
    },
    async speak(input) {
      const call = startSpeechCall(input.signal, totalMs);
      try {
        const sound = await call.wait(silenceMs, () => beginToSpeak(connect(config, key, call), call, input));
        metrics?.speechCalls.inc({ call: "speak" });
        return passOn(call, sound, silenceMs, (error) => fail("speak", call, error));
      } catch (error) {
        throw fail("speak", call, error);
      }
    },
  };
}

// A client per call (0.2 ms): the SDK hands its fetch nothing to tell calls by. Its log is off, since it would hold what
// was sent; its own timeout never comes first; what it would read from the environment is given. No redirect is
// followed, which would carry key and text elsewhere.
function connect(config: SpeechConfig, apiKey: string, call: SpeechCall): OpenAI {
  return new OpenAI({
    apiKey,
    baseURL: config.OPENAI_BASE_URL,
    organization: null,
    project: null,
    adminAPIKey: null,
    webhookSecret: null,
    logLevel: "off",
    maxRetries: RETRIES,
    timeout: 2 * config.VOICE_TIMEOUT_MS,
    fetch: call.fetch,
    fetchOptions: { redirect: "manual" },
  });
}

function askWhatWasSaid(
  openai: OpenAI,
  { TRANSCRIPTION_MODEL: model }: SpeechConfig,
  { signal }: SpeechCall,
  input: { bytes: Uint8Array; fileName: string; mediaType: string },
): Promise<unknown> {
  const file = new File([input.bytes as Uint8Array<ArrayBuffer>], input.fileName, { type: input.mediaType });
  // Only Whisper tells its doubts and the length; the gpt-4o models refuse to be asked.
  const format = /whisper/i.test(model) ? "verbose_json" : "json";
  return openai.audio.transcriptions.create({ file, model, response_format: format as "json" }, { signal });
}

// Other servers that speak this protocol leave fields out, or write the duration as text, as OpenAI did once.
const seconds = z
  .union([
    z.number(),
    z
      .string()
      .regex(/^\d+(\.\d+)?$/)
      .transform(Number),
  ])
  .pipe(z.number().nonnegative())
  .nullish()
  .catch(null);
const answerSchema = z.object({
  text: z.string(),
  duration: seconds,
  segments: z
    .array(z.object({ no_speech_prob: z.number(), avg_logprob: z.number() }))
    .nullish()
    .catch(null),
  usage: z
    .object({ type: z.literal("duration"), seconds })
    .nullish()
    .catch(null),
});

function readHeard(answer: unknown): Heard {
  const { data } = answerSchema.safeParse(answer);
  if (!data) throw new UnusableAnswer();
  const segments = data.segments ?? [];
  const text = data.text.replaceAll("\0", "").toWellFormed().trim();
  // Whisper's own rule for silence, in which it likes to hear "Thank you."
  const silent = segments.length > 0 && segments.every((part) => part.no_speech_prob > 0.6 && part.avg_logprob < -1);
  const noSpeech = silent || text === "";
  return {
    text: noSpeech ? "" : text,
    durationSeconds: data.duration ?? data.usage?.seconds ?? null,
    noSpeech,
  };
}

interface Sound {
  first: Uint8Array;
  rest: Pick<ReadableStreamDefaultReader<Uint8Array>, "read" | "cancel">;
}

/** Waits for the first bytes, too: until then a failure is still a status for the client, and costs nothing. */
async function beginToSpeak(openai: OpenAI, { signal }: SpeechCall, input: SpeakInput): Promise<Sound> {
  const { text, voice, model, format, speed } = input;
  const response = await openai.audio.speech.create(
    { input: text, voice, model, response_format: format, speed },
    { signal },
  );
  const mediaType = response.headers.get("content-type") ?? "";
  if (!response.body || /^(text\/|application\/json)/i.test(mediaType)) throw new UnusableAnswer();
  const rest = response.body.getReader();
  for (;;) {
    const { done, value } = await rest.read();
    if (done) throw new UnusableAnswer();
    if (value.length > 0) return { first: value, rest };
  }
}

/** Reads only when it is read from, and holds nothing back. */
function passOn(
  call: SpeechCall,
  sound: Sound,
  silenceMs: number,
  fail: (error: unknown) => Error,
): ReadableStream<Uint8Array> {
  let first: Uint8Array | null = sound.first;
  call.signal.addEventListener("abort", () => void sound.rest.cancel().catch(() => undefined), { once: true });
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        if (first) {
          controller.enqueue(first);
          first = null;
          return;
        }
        try {
          const { done, value } = await call.wait(silenceMs, () => sound.rest.read());
          if (!done) return controller.enqueue(value);
          call.end();
          controller.close();
        } catch (error) {
          throw fail(error);
        }
      },
      cancel() {
        call.end();
        call.abort();
      },
    },
    { highWaterMark: 0 },
  );
}
