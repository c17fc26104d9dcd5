import { getUsage, type Cost } from "../db/usage.ts";
import type { Queryable } from "../db/connect.ts";
import type { Deps } from "../deps.ts";
import { detectFormat, MEDIA_TYPES, type AudioFormat } from "../lib/audio/formats.ts";
import { measureAudio } from "../lib/audio/measure.ts";
import { AppError } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import { estimateCost } from "../lib/prices.ts";
import { wholeSeconds } from "../lib/seconds.ts";
import { findCheapRefusal, isRefused, reserveUsage, settleUsage, type Refused, type UsageDeps } from "./usage.ts";

export type HearingDeps = UsageDeps & Pick<Deps, "speech" | "audio" | "log" | "traces">;

/** Beyond the provider's own budget: for the look into the bytes before, and the settling after. */
const GRACE_MS = 60_000;
/** What a provider may claim to have heard: a day. */
const LONGEST_SECONDS = 86_400;

/** What was said. `reservation`: what it costs, to be settled with whatever is made of it; null for silence, which is free. */
export interface Transcript {
  text: string;
  durationSeconds: number;
  reservation: Reservation | null;
}
interface Reservation {
  key: string;
  seconds: number;
  cost: Cost;
}

/**
 * Turns speech into text. Its length is measured and reserved before anything is spent; who is refused, fails, or said
 * nothing pays nothing. The caller settles what was heard (`settleHeard`, or `giveBackHeard`); what nobody settles comes
 * back by itself. Throws `unsupported_audio`, `account_suspended`, `voice_unavailable`; rethrows the signal's reason.
 */
export async function hear(
  deps: HearingDeps,
  input: { userId: string; bytes: Uint8Array; signal: AbortSignal },
): Promise<Transcript | Refused> {
  const { userId, bytes, signal } = input;
  const format = detectFormat(bytes);
  const measured = format && (await measureAudio(bytes, format));
  if (!format || measured === null) throw new AppError("unsupported_audio");
  const key = newId();
  const reserved = await reserve(deps, { userId, key, seconds: Math.max(1, wholeSeconds(measured)) });
  if (isRefused(reserved)) return reserved;
  const silence = { text: "", durationSeconds: measured, reservation: null };
  try {
    if (!(await deps.audio.hasSpeechEnergy(bytes, format))) return await giveBack(deps, userId, key, silence);
    const heard = await transcribe(deps, bytes, format, signal);
    const durationSeconds = Math.min(heard.durationSeconds ?? measured, LONGEST_SECONDS);
    const reservation = renderReservation(deps, key, durationSeconds);
    // Free for the user, not for us.
    if (heard.noSpeech || heard.text === "") return await giveBack(deps, userId, key, silence, reservation.cost);
    return { text: heard.text, durationSeconds, reservation };
  } catch (error) {
    await giveBack(deps, userId, key, null);
    throw error;
  }
}

/** Charges what was heard, in the transaction that makes something of it. */
export async function settleHeard(
  deps: UsageDeps,
  sql: Queryable,
  userId: string,
  { reservation }: Transcript,
): Promise<void> {
  if (!reservation) return;
  const { key, seconds, cost } = reservation;
  await settleUsage(deps, sql, { userId, key, status: "committed", actual: { voiceInputSeconds: seconds }, cost });
}

/** Gives back what was reserved for something heard that came to nothing. */
export async function giveBackHeard(deps: HearingDeps, userId: string, { reservation }: Transcript): Promise<void> {
  if (reservation) await giveBack(deps, userId, reservation.key, null, reservation.cost);
}

async function reserve(deps: HearingDeps, input: { userId: string; key: string; seconds: number }) {
  const { userId, key, seconds } = input;
  const amounts = { voiceInputSeconds: seconds };
  const refused = await findCheapRefusal(deps, userId, amounts);
  if (refused) return refused;
  if (!deps.speech) throw new AppError("voice_unavailable", {}, "Voice is not set up here.");
  return deps.sql.begin(async (sql) => {
    const usage = await getUsage(sql, userId);
    if (!usage.active) throw new AppError("account_suspended");
    const expiresInMs = deps.config.VOICE_TIMEOUT_MS + GRACE_MS;
    return reserveUsage(deps, sql, { userId, key, usage, amounts, expiresInMs });
  });
}

async function transcribe(deps: HearingDeps, bytes: Uint8Array, format: AudioFormat, signal: AbortSignal) {
  const heard = await deps.speech!.transcribe({
    bytes,
    fileName: `voice.${format}`,
    mediaType: MEDIA_TYPES[format],
    signal,
  });
  return { ...heard, text: heard.text.toWellFormed().replaceAll("\u0000", "").trim() };
}

function renderReservation({ config }: HearingDeps, key: string, durationSeconds: number): Reservation {
  const model = config.TRANSCRIPTION_MODEL;
  const costMicroUsd = estimateCost(config.PRICES, model, { seconds: durationSeconds });
  const cost = { model, inputTokens: null, outputTokens: null, costMicroUsd };
  return { key, seconds: Math.max(1, wholeSeconds(durationSeconds)), cost };
}

/** What can't be given back now (Postgres is away) is given back when its time is over. */
async function giveBack<T>(deps: HearingDeps, userId: string, key: string, result: T, cost?: Cost): Promise<T> {
  await deps.sql
    .begin((sql) => settleUsage(deps, sql, { userId, key, status: "released", ...(cost && { cost }) }))
    .catch((err: unknown) => deps.log.warn({ err, user_id: userId }, "a reservation waits for its end"));
  return result;
}
