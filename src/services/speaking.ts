import { getUsage, type Amounts, type Usage } from "../db/usage.ts";
import type { Deps } from "../deps.ts";
import { measureSpeech } from "../lib/audio/measure.ts";
import { AppError } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import { estimateCost } from "../lib/prices.ts";
import { wholeSeconds } from "../lib/seconds.ts";
import type { SpeechFormat } from "../protocol/voice.ts";
import { findCheapRefusal, isRefused, reserveUsage, settleUsage, type Refused, type UsageDeps } from "./usage.ts";

export type SpeakingDeps = UsageDeps & Pick<Deps, "speech" | "log" | "metrics" | "traces">;

/** How fast OpenAI's voices speak, about: what is reserved; what is charged is measured. */
const CHARACTERS_PER_SECOND = 14;
/** A stream that its reader has not taken by then is cut, and what was reserved for it beyond comes back. */
const STREAM_MS = 300_000;
const GRACE_MS = 30_000;
/** The most that a second of sound takes, about. */
const BYTES_PER_SECOND: Record<SpeechFormat, number> = {
  mp3: 20_000,
  opus: 12_000,
  aac: 20_000,
  flac: 48_000,
  wav: 48_000,
  pcm: 48_000,
};
/** Of sound that is not compressed the beginning tells how many bytes make a second. */
const UNCOMPRESSED: readonly SpeechFormat[] = ["wav", "pcm"];
const KEPT_BYTES = 65_536;
/** Who sends more for a sentence, seven minutes at 160 kbit/s, speaks nonsense, perhaps for ever. */
const MOST_COLLECTED_BYTES = 8 * 1024 * 1024;

/** What is to be spoken, how, and for whom. */
export interface SpeechRequest {
  userId: string;
  /** As it is to be spoken (lib/spokenText.ts); not empty. */
  text: string;
  /** Asked for by name: refused when the plan does not have it. */
  voice: string | null;
  /** The assistant's own; one that the plan no longer has gives way to the plan's first. */
  assistantVoice: string | null;
  format: SpeechFormat;
  /** 1: as the voice speaks. */
  speed: number;
  signal: AbortSignal;
  /** Whether it is we who end connections now: nobody pays for what we broke off. */
  isDraining?: () => boolean;
}

/** Sound on its way. */
export interface Speech {
  /** As the provider sends it. Whoever cancels it pays for what came until then. */
  stream: ReadableStream<Uint8Array>;
  characters: number;
  /** The day with all of it reserved. */
  usage: Usage;
  /** Its length, when it is over and settled; what came of it until then, when it was cancelled or failed. */
  ended: Promise<{ durationSeconds: number }>;
}

/**
 * Turns text into speech. Characters and seconds are reserved before anything is spent, and settled at what came; a call
 * that fails gives everything back. Throws `voice_not_in_plan`, `account_suspended`, `voice_unavailable`.
 */
export async function speak(deps: SpeakingDeps, request: SpeechRequest): Promise<Speech | Refused> {
  const begun = await begin(deps, request);
  if (isRefused(begun)) return begun;
  const { ledger, source, reserved } = begun;
  const { text } = request;
  return { stream: ledger.follow(source), characters: text.length, usage: reserved, ended: ledger.ended.promise };
}

/** Sound that is passed on as a whole, and paid for when that was done. */
export interface HeldSpeech {
  /** All of it; once. Rejects as the call fails, or with the signal's reason. */
  collect(): Promise<Buffer>;
  /**
   * Charges what was collected, or gives back everything: the first call decides. `secondsBefore` were spoken of the same
   * answer before: whole seconds are charged for the answer, not for each sentence.
   */
  settle(how: "whole" | "failed", secondsBefore?: number): Promise<{ durationSeconds: number }>;
}

/** As `speak`, but nothing is paid until the caller says so; what nobody settles comes back by itself. */
export async function speakHeld(deps: SpeakingDeps, request: SpeechRequest): Promise<HeldSpeech | Refused> {
  const begun = await begin(deps, request);
  if (isRefused(begun)) return begun;
  const { ledger, source } = begun;
  return {
    collect: () => ledger.collect(source),
    settle: (how, secondsBefore) => ledger.settle(how, secondsBefore),
  };
}

/** Reserves, and asks the provider: resolves with the first of the sound. */
async function begin(deps: SpeakingDeps, request: SpeechRequest) {
  const { userId, text, format, speed } = request;
  const amounts = { ttsCharacters: text.length, voiceOutputSeconds: estimateSeconds(text, speed) };
  const key = newId();
  const reserved = await reserve(deps, { userId, key, amounts, voice: request.voice });
  if (isRefused(reserved)) return reserved;
  const model = reserved.ttsModel;
  const voice = request.voice ?? chooseVoice(reserved, request.assistantVoice);
  const signal = AbortSignal.any([request.signal, AbortSignal.timeout(STREAM_MS)]);
  const ledger = new SpeechLedger(deps, { ...request, key, model, amounts, signal });
  try {
    const source = await deps.speech!.speak({ text, voice, model, format, speed, signal });
    return { reserved, ledger, source };
  } catch (error) {
    await ledger.settle("failed");
    throw error;
  }
}

/** About how long a text is when it is spoken, in whole seconds. */
function estimateSeconds(text: string, speed: number): number {
  return Math.max(1, Math.ceil(text.length / CHARACTERS_PER_SECOND / speed));
}

/** About how many bytes a text's speech has, at most. */
export function estimateBytes(text: string, speed: number, format: SpeechFormat): number {
  return estimateSeconds(text, speed) * BYTES_PER_SECOND[format];
}

function chooseVoice({ voices }: Usage, assistantVoice: string | null): string {
  return assistantVoice !== null && voices.includes(assistantVoice) ? assistantVoice : voices[0]!;
}

async function reserve(
  deps: SpeakingDeps,
  input: { userId: string; key: string; amounts: Partial<Amounts>; voice: string | null },
): Promise<Usage | Refused> {
  const { userId, key, amounts, voice } = input;
  const refused = await findCheapRefusal(deps, userId, amounts);
  if (refused) return refused;
  if (!deps.speech) throw new AppError("voice_unavailable", {}, "Voice is not set up here.");
  return deps.sql.begin(async (sql) => {
    const usage = await getUsage(sql, userId);
    if (!usage.active) throw new AppError("account_suspended");
    if (voice !== null && !usage.voices.includes(voice))
      throw new AppError("voice_not_in_plan", { upgrade_to: usage.upgradeTo });
    return reserveUsage(deps, sql, { userId, key, usage, amounts, expiresInMs: STREAM_MS + GRACE_MS });
  });
}

/** Follows one speech to its end and settles it, once. */
class SpeechLedger {
  readonly ended = Promise.withResolvers<{ durationSeconds: number }>();
  private chunks: Uint8Array[] = [];
  private keptBytes = 0;
  private bytes = 0;
  private settled: Promise<{ durationSeconds: number }> | null = null;

  constructor(
    private readonly deps: SpeakingDeps,
    private readonly speech: SpeechRequest & {
      key: string;
      model: string;
      amounts: { ttsCharacters: number; voiceOutputSeconds: number };
    },
  ) {}

  /** The same stream, settled before its reader sees its end. One that nobody reads ends with the signal, too. */
  follow(source: ReadableStream<Uint8Array>): ReadableStream<Uint8Array> {
    const { signal } = this.speech;
    const reader = source.getReader();
    const leave = async (reason: unknown) => {
      // First: a read that waits takes the cancelling for the end.
      const settled = this.settle(this.speech.isDraining?.() ? "failed" : "left");
      await reader.cancel(reason).catch(() => undefined);
      await settled;
    };
    const { promise: over, resolve: end } = Promise.withResolvers<void>();
    return new ReadableStream<Uint8Array>(
      {
        start: (controller) => {
          const stop = () => void leave(signal.reason).then(() => controller.error(signal.reason));
          if (signal.aborted) return stop();
          signal.addEventListener("abort", stop, { once: true });
          void over.then(() => signal.removeEventListener("abort", stop));
        },
        pull: async (controller) => {
          try {
            const { done, value } = await reader.read();
            if (signal.aborted) return;
            if (!done) {
              this.keep(value);
              return controller.enqueue(value);
            }
            await this.settle("whole");
            controller.close();
          } catch (error) {
            // Then it is over already, or will be in a moment.
            if (signal.aborted) return;
            await this.settle("failed");
            controller.error(error);
          }
          end();
        },
        cancel: (reason) => {
          end();
          return leave(reason);
        },
      },
      { highWaterMark: 0 },
    );
  }

  /** `whole`: as measured. `left`: the reader went away and pays for what came. `failed`: nothing. */
  settle(how: "whole" | "left" | "failed", secondsBefore = 0): Promise<{ durationSeconds: number }> {
    this.settled ??= this.write(how, secondsBefore);
    return this.settled;
  }

  /** All of the sound, in one piece. */
  async collect(source: ReadableStream<Uint8Array>): Promise<Buffer> {
    const sound: Uint8Array[] = [];
    for await (const chunk of source) {
      this.keep(chunk);
      if (this.bytes > MOST_COLLECTED_BYTES) throw new AppError("voice_unavailable");
      sound.push(chunk);
    }
    return Buffer.concat(sound);
  }

  private keep(chunk: Uint8Array): void {
    this.bytes += chunk.length;
    if (this.keptBytes >= KEPT_BYTES && UNCOMPRESSED.includes(this.speech.format)) return;
    this.keptBytes += chunk.length;
    this.chunks.push(chunk);
  }

  private async write(how: "whole" | "left" | "failed", secondsBefore: number): Promise<{ durationSeconds: number }> {
    const { deps, speech } = this;
    const { userId, key, model, amounts } = speech;
    const measured = await this.measure();
    const durationSeconds = measured ?? (how === "whole" ? amounts.voiceOutputSeconds : 0);
    const share = how === "whole" ? 1 : Math.min(1, durationSeconds / amounts.voiceOutputSeconds);
    const ttsCharacters = Math.ceil(amounts.ttsCharacters * share);
    const voiceOutputSeconds = wholeSeconds(secondsBefore + durationSeconds) - wholeSeconds(secondsBefore);
    // Whoever speaks has taken the whole text, and wants to be paid for it, however much of the sound came.
    const characters = how === "failed" && this.bytes === 0 ? 0 : amounts.ttsCharacters;
    const costMicroUsd = estimateCost(deps.config.PRICES, model, { characters });
    const cost = { model, inputTokens: null, outputTokens: null, costMicroUsd };
    const actual = { ttsCharacters, voiceOutputSeconds };
    const settling =
      how === "failed" ? { status: "released" as const, cost } : { status: "committed" as const, actual, cost };
    await deps.sql
      .begin((sql) => settleUsage(deps, sql, { userId, key, ...settling }))
      .catch((err: unknown) => deps.log.warn({ err, user_id: userId }, "a reservation waits for its end"));
    this.ended.resolve({ durationSeconds });
    return { durationSeconds };
  }

  /** Seconds that came; null when it can't be told. */
  private async measure(): Promise<number | null> {
    const kept = Buffer.concat(this.chunks);
    this.chunks = [];
    if (kept.length === 0) return 0;
    const { format } = this.speech;
    const seconds = await measureSpeech(kept, format);
    const unkeptBytes = this.bytes - kept.length;
    if (seconds === null || unkeptBytes === 0) return seconds;
    const half = kept.subarray(0, KEPT_BYTES / 2);
    const secondsAByte = (seconds - ((await measureSpeech(half, format)) ?? 0)) / (kept.length - half.length);
    return seconds + unkeptBytes * secondsAByte;
  }
}
