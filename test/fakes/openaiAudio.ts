import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { ConnectionCut, cutResponse, HttpFault, streamResponse, suffer, withFirst, type Fault } from "./openaiHttp.ts";
import { startTone, type ToneFormat } from "./tone.ts";

/** How a call stands: `refused` got an HTTP error, `broken` was cut by the script, `left` was given up by the client. */
export type CallState = "running" | "done" | "refused" | "broken" | "left";

/** One `POST /v1/audio/transcriptions`. */
export interface TranscriptionCall {
  model: string;
  responseFormat: string;
  fileName: string;
  sha256: string;
  bytes: number;
  /** What the table of fixtures says; for other audio a fixed sentence and what its length seems to be. */
  known: { text: string; seconds: number };
  state: CallState;
}

/** One `POST /v1/audio/speech`. */
export interface SpeechCall {
  text: string;
  voice: string;
  model: string;
  format: ToneFormat;
  speed: number;
  /** How long this text takes at this speed. */
  seconds: number;
  /** Sent so far; of a call that the client left, how far it came. */
  bytesSent: number;
  state: CallState;
}

/**
 * One thing done while listening: an answer (`duration` is reported as it is, also when it is nonsense), a body as it
 * is, or a fault.
 */
export type HearingStep =
  { text: string; duration?: unknown; noSpeechProb?: number; avgLogprob?: number } | { body: string } | Fault;
/** One thing done while speaking: so many seconds of sound, or a fault. */
export type SpeakingStep = { seconds: number } | Fault;

type Script<C, S> = (call: C) => AsyncIterable<S> | Iterable<S>;

export interface FakeAudio {
  /** The last 200 calls of each kind that were understood, most recent last. */
  transcriptionCalls: TranscriptionCall[];
  speechCalls: SpeechCall[];
  /** What happens; may be replaced at any time. A generator that awaits something holds the answer back there. */
  hear: Script<TranscriptionCall, HearingStep>;
  speak: Script<SpeechCall, SpeakingStep>;
  /** Calls being answered now: 0 shows that an aborted one really stopped. */
  running: number;
}

const CALLS_KEPT = 200;
const LIMIT_BYTES = 26_214_400;
const CHARACTERS_A_SECOND = 15;
const HEARING_MODELS = ["whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe"];
const SPEAKING_MODELS = ["tts-1", "tts-1-hd", "gpt-4o-mini-tts"];
const VOICES = ["nova", "shimmer", "echo", "onyx", "fable", "alloy", "ash", "sage", "coral"];
const FILE_ENDINGS = ["flac", "m4a", "mp3", "mp4", "mpeg", "mpga", "oga", "ogg", "wav", "webm"];
const MEDIA_TYPES: Record<ToneFormat, string> = {
  mp3: "audio/mpeg",
  opus: "audio/ogg",
  aac: "audio/aac",
  flac: "audio/flac",
  wav: "audio/wav",
  pcm: "audio/pcm",
};

/** Hears what the table of fixtures says and "hello" in all else; speaks a tone as long as the text. */
export function createFakeAudio(): FakeAudio {
  return {
    transcriptionCalls: [],
    speechCalls: [],
    hear: ({ known }) => [{ text: known.text, duration: known.seconds }],
    speak: spokenAtOnce,
    running: 0,
  };
}

/** A second at a time, faster than it is heard, as the real one does. */
export function* spokenAtOnce({ seconds }: SpeechCall): Generator<SpeakingStep> {
  for (let rest = seconds; rest > 0; rest -= 1) {
    if (rest < seconds) yield { delayMs: 4 };
    yield { seconds: Math.min(1, rest) };
  }
}

/** The answer to a POST; null when the path is not ours. */
export async function audioRoute(audio: FakeAudio, path: string, request: Request): Promise<Response | null> {
  if (path === "/v1/audio/transcriptions") {
    const call = await readTranscription(request);
    return answer(audio, audio.transcriptionCalls, call, "application/json", request.signal, (signal) =>
      heard(call, audio.hear(call), signal),
    );
  }
  if (path === "/v1/audio/speech") {
    const call = await readSpeech(request);
    return answer(audio, audio.speechCalls, call, MEDIA_TYPES[call.format], request.signal, (signal) =>
      spoken(call, audio.speak(call), signal),
    );
  }
  return null;
}

/** Notes the call and sends what `produce` makes of it; the first piece is awaited, so that a fault can be a status. */
async function answer<C extends { state: CallState }>(
  audio: FakeAudio,
  calls: C[],
  call: C,
  mediaType: string,
  signal: AbortSignal,
  produce: (signal: AbortSignal) => AsyncGenerator<Uint8Array>,
): Promise<Response> {
  calls.push(call);
  if (calls.length > CALLS_KEPT) calls.shift();
  audio.running += 1;
  const finish = (state: CallState) => {
    if (call.state !== "running") return;
    call.state = state;
    audio.running -= 1;
  };
  signal.addEventListener("abort", () => finish("left"));
  const pieces = produce(signal);
  async function* noted() {
    try {
      yield* withFirst(first, pieces);
      finish(signal.aborted ? "left" : "done");
    } catch (error) {
      finish("broken");
      throw error;
    }
  }
  let first: IteratorResult<Uint8Array>;
  try {
    first = await pieces.next();
  } catch (error) {
    finish(error instanceof ConnectionCut ? "broken" : "refused");
    if (error instanceof ConnectionCut) return cutResponse();
    throw error;
  }
  return streamResponse(noted(), { "content-type": mediaType }, () => finish("left"));
}

async function* heard(
  call: TranscriptionCall,
  steps: AsyncIterable<HearingStep> | Iterable<HearingStep>,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  for await (const step of steps) {
    if (signal.aborted) return;
    if ("text" in step) yield Buffer.from(JSON.stringify(transcriptionBody(call, step)));
    else if ("body" in step) yield Buffer.from(step.body);
    else await suffer(step, signal);
    if (signal.aborted) return;
  }
}

async function* spoken(
  call: SpeechCall,
  steps: AsyncIterable<SpeakingStep> | Iterable<SpeakingStep>,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  const tone = startTone(call.format);
  const sent = (bytes: Uint8Array) => {
    call.bytesSent += bytes.length;
    return bytes;
  };
  for await (const step of steps) {
    if (signal.aborted) return;
    if ("seconds" in step) yield sent(tone.seconds(step.seconds));
    else await suffer(step, signal);
    if (signal.aborted) return;
  }
  const end = tone.end();
  if (end.length > 0 && call.bytesSent > 0) yield sent(end);
}

function transcriptionBody(call: TranscriptionCall, step: Extract<HearingStep, { text: string }>): object {
  const { text } = step;
  const duration = "duration" in step ? step.duration : call.known.seconds;
  const tokens = Math.ceil(text.length / 4);
  const audioTokens = Math.ceil(call.known.seconds * 10);
  const usage =
    call.model === "whisper-1"
      ? { type: "duration", seconds: typeof duration === "number" ? Math.ceil(duration) : duration }
      : {
          type: "tokens",
          total_tokens: tokens + audioTokens,
          input_tokens: audioTokens,
          input_token_details: { text_tokens: 0, audio_tokens: audioTokens },
          output_tokens: tokens,
        };
  if (call.responseFormat !== "verbose_json") return { text, usage };
  const segment = {
    id: 0,
    seek: 0,
    start: 0,
    end: duration,
    text: ` ${text}`,
    tokens: [50_364],
    temperature: 0,
    avg_logprob: step.avgLogprob ?? -0.25,
    compression_ratio: 0.9,
    no_speech_prob: step.noSpeechProb ?? 0.01,
  };
  return { task: "transcribe", language: "english", duration, text, segments: text === "" ? [] : [segment], usage };
}

async function readTranscription(request: Request): Promise<TranscriptionCall> {
  const form = await request.formData().catch(() => {
    throw new HttpFault(400, "Could not parse multipart form");
  });
  const field = (name: string): string | null => {
    const value = form.get(name);
    return typeof value === "string" && value !== "" ? value : null;
  };
  const file = form.get("file");
  if (!(file instanceof File))
    throw new HttpFault(
      400,
      "1 validation error for Request\nbody -> file\n  field required (type=value_error.missing)",
    );
  const model = field("model");
  if (model === null) throw new HttpFault(400, "you must provide a model parameter");
  requireModel(HEARING_MODELS, model);
  const responseFormat = field("response_format") ?? "json";
  requireResponseFormat(model, responseFormat);
  const bytes = new Uint8Array(await file.arrayBuffer());
  requireAudio(file.name, bytes);
  const sha256 = createHash("sha256").update(bytes).digest("hex");
  return {
    model,
    responseFormat,
    fileName: file.name,
    sha256,
    bytes: bytes.length,
    known: fixtures().get(sha256) ?? { text: "hello", seconds: await lengthOf(bytes) },
    state: "running",
  };
}

function requireModel(models: string[], model: string): void {
  if (!models.includes(model))
    throw new HttpFault(404, `The model \`${model}\` does not exist or you do not have access to it.`);
}

function requireResponseFormat(model: string, format: string): void {
  if (!["json", "text", "srt", "verbose_json", "vtt"].includes(format))
    throw new HttpFault(400, `[{'type': 'enum', 'loc': ('body', 'response_format'), 'input': '${format}'}]`);
  if (model !== "whisper-1" && format !== "json") {
    const message = `response_format '${format}' is not compatible with model '${model}'. Use 'json' or 'text' instead.`;
    throw new HttpFault(400, message, undefined, "unsupported_value");
  }
  // The real one knows them, our client doesn't ask for them.
  if (!["json", "verbose_json"].includes(format)) throw new HttpFault(400, `The double does not speak ${format}.`);
}

function requireAudio(fileName: string, bytes: Uint8Array): void {
  if (bytes.length > LIMIT_BYTES)
    throw new HttpFault(413, `Maximum content size limit (${LIMIT_BYTES}) exceeded (${bytes.length} bytes read)`);
  const ending = fileName.split(".").at(-1)?.toLowerCase() ?? "";
  if (!FILE_ENDINGS.includes(ending) || !looksLikeAudio(bytes)) {
    const formats = FILE_ENDINGS.map((name) => `'${name}'`).join(", ");
    throw new HttpFault(400, `Invalid file format. Supported formats: [${formats}]`);
  }
}

function looksLikeAudio(bytes: Uint8Array): boolean {
  const [head, first] = [Buffer.from(bytes.subarray(0, 12)).toString("latin1"), bytes[0]];
  const isMpegFrame = first === 0xff && (bytes[1]! & 0xe0) === 0xe0;
  const isMatroska = first === 0x1a && head.startsWith("E\xdf\xa3", 1);
  return isMpegFrame || isMatroska || /^(RIFF....WAVE|ID3|fLaC|OggS|....ftyp)/s.test(head);
}

/** Roughly, of audio that nobody has listed: what a person records on a system with the scripted provider. */
async function lengthOf(bytes: Uint8Array): Promise<number> {
  const { parseBuffer } = await import("music-metadata");
  const metadata = await parseBuffer(bytes, undefined, { duration: true }).catch(() => null);
  return metadata?.format.duration ?? Math.max(0.1, bytes.length / 4000);
}

/** By the file's SHA-256. */
let table: Map<string, { text: string; seconds: number }> | undefined;
function fixtures(): Map<string, { text: string; seconds: number }> {
  if (table) return table;
  const file = join(import.meta.dir, "../fixtures/voice/manifest.json");
  type Listed = { sha256: string; seconds: number; text: string };
  const listed = existsSync(file) ? (JSON.parse(readFileSync(file, "utf8")) as Record<string, Listed>) : {};
  table = new Map(Object.values(listed).map(({ sha256, text, seconds }) => [sha256, { text, seconds }]));
  return table;
}

async function readSpeech(request: Request): Promise<SpeechCall> {
  const body = (await request.json().catch(() => null)) as Record<string, unknown> | null;
  if (typeof body !== "object" || body === null) throw new HttpFault(400, "We could not parse the JSON body.");
  const { input, voice, model, response_format: format = "mp3", speed = 1 } = body;
  if (typeof model !== "string") throw new HttpFault(400, "you must provide a model parameter");
  requireModel(SPEAKING_MODELS, model);
  if (typeof input !== "string") throw invalid("input", "missing", "Field required");
  if (input === "") throw invalid("input", "string_too_short", "String should have at least 1 character", input);
  const characters = Array.from(input).length;
  if (characters > 4096) throw invalid("input", "string_too_long", "String should have at most 4096 characters", input);
  if (typeof voice !== "string" || !VOICES.includes(voice))
    throw invalid("voice", "enum", `Input should be ${VOICES.map((name) => `'${name}'`).join(", ")}`, String(voice));
  if (!isFormat(format)) throw invalid("response_format", "enum", `Input should be 'mp3', 'opus' …`, String(format));
  if (typeof speed !== "number" || !(speed >= 0.25))
    throw invalid("speed", "greater_than_equal", "0.25", String(speed));
  if (speed > 4) throw invalid("speed", "less_than_equal", "Input should be less than or equal to 4", String(speed));
  const seconds = characters / CHARACTERS_A_SECOND / speed;
  return { text: input, voice, model, format, speed, seconds, bytesSent: 0, state: "running" };
}

const isFormat = (format: unknown): format is ToneFormat => typeof format === "string" && format in MEDIA_TYPES;

/** As the real one says it: with what was sent in it. */
function invalid(field: string, type: string, message: string, input = "None"): HttpFault {
  return new HttpFault(
    400,
    `[{'type': '${type}', 'loc': ('body', '${field}'), 'msg': '${message}', 'input': '${input}'}]`,
  );
}
