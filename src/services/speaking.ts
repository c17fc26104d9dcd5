import { getUsage, type Amounts, type Usage } from "../db/usage.ts";
import type { Deps } from "../deps.ts";
import { measureSpeech } from "../lib/audio/length.ts";
import { AppError } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import { estimateCost } from "../lib/prices.ts";
import type { SpeechFormat } from "../protocol/voice.ts";
import { findCheapRefusal, isRefused, reserveUsage, settleUsage, type Refused, type UsageDeps } from "./usage.ts";

export type SpeakingDeps = UsageDeps & Pick<Deps, "speech" | "log">;

/** How fast OpenAI's voices speak, about: what is reserved; what is charged is measured. */
const CHARACTERS_PER_SECOND = 14;
/** A stream that its reader has not taken by then is cut, and what was reserved for it beyond comes back. */
const STREAM_MS = 300_000;
const GRACE_MS = 30_000;

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
  /** Seconds that were spoken of the same answer before: whole seconds are charged for the answer, not for each sentence. */
  secondsBefore?: number;
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
  const { userId, text, format, speed } = request;
  const amounts = { ttsCharacters: text.length, voiceOutputSeconds: estimateSeconds(text, speed) };
  const key = newId();
  const reserved = await reserve(deps, { userId, key, amounts, voice: request.voice });
  if (isRefused(reserved)) return reserved;
  const model = reserved.ttsModel;
  const voice = request.voice ?? chooseVoice(reserved, request.assistantVoice);
  const ledger = new SpeechLedger(deps, { key, model, amounts, ...request });
  try {
    const signal = AbortSignal.any([request.signal, AbortSignal.timeout(STREAM_MS)]);
    const source = await deps.speech!.speak({ text, voice, model, format, speed, signal });
    return { stream: ledger.follow(source), characters: text.length, usage: reserved, ended: ledger.ended.promise };
  } catch (error) {
    await ledger.settle("failed");
    throw error;
  }
}

/** About how long a text is when it is spoken, in whole seconds. */
function estimateSeconds(text: string, speed: number): number {
  return Math.max(1, Math.ceil(text.length / CHARACTERS_PER_SECOND / speed));
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
  private readonly chunks: Uint8Array[] = [];
  private settled = false;

  constructor(
    private readonly deps: SpeakingDeps,
    private readonly speech: SpeechRequest & {
      key: string;
      model: string;
      amounts: { ttsCharacters: number; voiceOutputSeconds: number };
    },
  ) {}

  /** The same stream, settled before its reader sees its end. */
  follow(source: ReadableStream<Uint8Array>): ReadableStream<Uint8Array> {
    const reader = source.getReader();
    return new ReadableStream<Uint8Array>(
      {
        pull: async (controller) => {
          try {
            const { done, value } = await reader.read();
            if (!done) {
              this.chunks.push(value);
              return controller.enqueue(value);
            }
            await this.settle("whole");
            controller.close();
          } catch (error) {
            await this.settle(this.speech.signal.aborted ? "left" : "failed");
            controller.error(error);
          }
        },
        cancel: async (reason) => {
          await reader.cancel(reason).catch(() => undefined);
          await this.settle("left");
        },
      },
      { highWaterMark: 0 },
    );
  }

  /** `whole`: as measured. `left`: the reader went away and pays for what came. `failed`: nothing. */
  async settle(how: "whole" | "left" | "failed"): Promise<void> {
    if (this.settled) return;
    this.settled = true;
    const { deps, speech } = this;
    const { userId, key, model, amounts, secondsBefore = 0 } = speech;
    const bytes = Buffer.concat(this.chunks);
    const durationSeconds =
      (bytes.length === 0 ? 0 : await measureSpeech(bytes, speech.format)) ?? amounts.voiceOutputSeconds;
    const share = how === "whole" ? 1 : Math.min(1, durationSeconds / amounts.voiceOutputSeconds);
    const ttsCharacters = Math.ceil(amounts.ttsCharacters * share);
    const voiceOutputSeconds = Math.ceil(secondsBefore + durationSeconds) - Math.ceil(secondsBefore);
    const costMicroUsd = estimateCost(deps.config.PRICES, model, { characters: ttsCharacters });
    const cost = { model, inputTokens: null, outputTokens: null, costMicroUsd };
    const actual = { ttsCharacters, voiceOutputSeconds };
    const settling =
      how === "failed" ? { status: "released" as const } : { status: "committed" as const, actual, cost };
    await deps.sql
      .begin((sql) => settleUsage(deps, sql, { userId, key, ...settling }))
      .catch((err: unknown) => deps.log.warn({ err, user_id: userId }, "a reservation waits for its end"));
    this.ended.resolve({ durationSeconds });
  }
}
