import type { Context } from "hono";
import type { Deps } from "../deps.ts";
import { parseAccept } from "../http/accept.ts";
import type { Env, Router } from "../http/env.ts";
import { noRoom } from "../http/largeBody.ts";
import { allowQuiet, inRequest } from "../http/middleware.ts";
import { inMilliseconds } from "../lib/seconds.ts";
import {
  speakBody,
  SPEECH_FORMATS,
  SPEECH_TYPES,
  spokenSchema,
  transcribeBody,
  transcriptSchema,
  VOICE_BODY_BYTES,
  type SpeechFormat,
} from "../protocol/voice.ts";
import { estimateBytes, type Speech } from "../services/speaking.ts";
import { isRefused, renderRefusal, type Refused } from "../services/usage.ts";
import { speakText, transcribe, type Heard } from "../services/voice.ts";

const tag = "Voice";
/** What a recording counts for at most while it is collected for JSON: one alone always has room. */
const MOST_HELD_BYTES = 24 * 1024 * 1024;

const FORMAT_OF_TYPE = new Map<string, SpeechFormat>([
  ["audio/mp3", "mp3"],
  ["audio/opus", "opus"],
  ["audio/wave", "wav"],
  ...SPEECH_FORMATS.map((format) => [SPEECH_TYPES[format], format] as const),
]);

/** `/api/voice`: speech to text, text to speech. */
export function voiceRoutes(router: Router, deps: Deps, isDraining: () => boolean): void {
  router.route(
    {
      method: "post",
      path: "/api/voice/transcribe",
      access: "user",
      metered: true,
      bodyBytes: VOICE_BODY_BYTES,
      tag,
      summary: "Write down what was said; silence is free",
      upload: {
        json: transcribeBody,
        field: "audio",
        formField: "file",
        types: ["audio/*", "application/octet-stream"],
        typePattern: /^(audio\/[\w.+-]+|application\/octet-stream)\s*(;|$)/i,
        otherType:
          "Send the audio as JSON with base64 in `audio`, as multipart/form-data with a `file`, or bare with an audio/* type.",
      },
      responses: { 200: transcriptSchema },
      errors: ["unsupported_audio", "voice_limit_reached", "voice_unavailable"],
    },
    async (c, { file }) => {
      const keep = c.get("keepAnswer");
      allowQuiet(c, true);
      const heard = await transcribe(inRequest(deps, c), c.get("actor"), {
        bytes: file,
        signal: c.req.raw.signal,
        keep: keep ? (sql, what) => keep(sql, 200, renderHeard(what)) : null,
      }).finally(() => allowQuiet(c, false));
      return c.json(renderHeard(orRefuse(deps, c, heard)));
    },
  );
  router.route(
    {
      method: "post",
      path: "/api/voice/speak",
      access: "user",
      metered: true,
      bodyBytes: VOICE_BODY_BYTES,
      keeps: false,
      tag,
      summary: "Speak a text: as JSON, or streamed as sound with `Accept: audio/*`",
      body: speakBody,
      responses: { 200: spokenSchema },
      streams: [...new Set(Object.values(SPEECH_TYPES))],
      errors: [
        "nothing_to_speak",
        "voice_not_in_plan",
        "assistant_not_found",
        "voice_limit_reached",
        "voice_unavailable",
      ],
    },
    async (c, { body }) => {
      const wanted = chooseAnswer(c.req.header("accept") ?? "");
      const format = body.format ?? wanted.format ?? "mp3";
      const { text, speed, voice = null, agent_id: agentId = null } = body;
      // The whole recording is held to be put into JSON.
      const bytes = Math.min(estimateBytes(text, speed, format), MOST_HELD_BYTES);
      if (!wanted.sound && !c.get("hold")?.grow(bytes)) throw noRoom();
      allowQuiet(c, true);
      const asked = { text, voice, agentId, format, speed, signal: c.req.raw.signal, isDraining };
      const speech = await speakText(inRequest(deps, c), c.get("actor"), asked).catch((error: unknown) => {
        allowQuiet(c, false);
        throw error;
      });
      if (isRefused(speech)) allowQuiet(c, false);
      const { stream, ended, usage, characters } = orRefuse(deps, c, speech);
      void ended.finally(() => allowQuiet(c, false));
      if (!wanted.sound) return c.json(await renderSpoken({ stream, ended, characters }, format));
      c.set("usage", usage);
      return c.body(breakSilently(stream), 200, { "Content-Type": SPEECH_TYPES[format] });
    },
  );
}

function orRefuse<T extends object>(deps: Pick<Deps, "metrics">, c: Context<Env>, outcome: T | Refused): T {
  if (!isRefused(outcome)) return outcome;
  c.set("usage", outcome.usage);
  throw renderRefusal(deps, outcome);
}

function renderHeard({ text, durationSeconds }: Heard) {
  return { text, duration_seconds: inMilliseconds(durationSeconds) };
}

async function renderSpoken({ stream, ended, characters }: Omit<Speech, "usage">, format: SpeechFormat) {
  const sound = await new Response(stream).bytes();
  const { durationSeconds } = await ended;
  return {
    audio: Buffer.from(sound.buffer, sound.byteOffset, sound.byteLength).toString("base64"),
    format,
    character_count: characters,
    duration_seconds: inMilliseconds(durationSeconds),
  };
}

// Of a body that breaks Bun writes the reason to the process's output.
function breakSilently(stream: ReadableStream<Uint8Array>): ReadableStream<Uint8Array> {
  const reader = stream.getReader();
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        try {
          const { done, value } = await reader.read();
          if (done) controller.close();
          else controller.enqueue(value);
        } catch {
          controller.error();
        }
      },
      cancel: (reason) => reader.cancel(reason),
    },
    { highWaterMark: 0 },
  );
}

/** Whether sound is asked for rather than JSON, and in which format, where `Accept` names one of ours. */
function chooseAnswer(accept: string): { sound: boolean; format: SpeechFormat | null } {
  const preferences = parseAccept(accept).filter(({ quality }) => quality > 0);
  const sounds = preferences.filter(({ type }) => type.startsWith("audio/"));
  const json = preferences.find(({ type }) => type === "application/json" || type === "application/*")?.quality ?? 0;
  if (sounds.length === 0 || sounds[0]!.quality <= json) return { sound: false, format: null };
  const named = sounds.map(({ type }) => FORMAT_OF_TYPE.get(type.replace("/x-", "/")));
  return { sound: true, format: named.find((format) => format !== undefined) ?? null };
}
