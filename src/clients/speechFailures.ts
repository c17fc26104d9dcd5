import { APIError } from "openai";
import { AppError } from "../lib/errors.ts";
import type { Log } from "../lib/log.ts";
import type { Metrics } from "../lib/metrics.ts";
import type { SpeechCall } from "./speechCall.ts";

export type SpeechCallKind = "transcribe" | "speak";

/** The provider answered 200 with something that is no answer. */
export class UnusableAnswer extends Error {}

/** Seconds that a client waits when the provider did not say, and at most. */
const RETRY_AFTER_SECONDS = { default: 5, most: 60 };

/** For whom a failure is: an operator has to do something, or it passes by itself. The sentences are what alarms read. */
const SENTENCES = {
  key_refused: ["error", "the speech provider refuses our key"],
  quota_used_up: ["error", "the speech provider's quota is used up"],
  request_refused: ["error", "the speech provider refuses our request"],
  unusable_answer: ["error", "the speech provider's answer can't be understood"],
  rate_limited: ["warn", "the speech provider has no room for us right now"],
  server_error: ["warn", "the speech provider is out of order"],
  connection: ["warn", "the connection to the speech provider broke"],
  timeout: ["warn", "the speech provider was silent for too long"],
} as const;
type Reason = keyof typeof SENTENCES;

/**
 * Makes what the user may know of a failed call, logs and counts what the operator must. Neither gets the provider's own
 * words: they quote what was sent, keys included.
 */
export function createSpeechFailures(log: Log, metrics?: Pick<Metrics, "speechFailures">) {
  return function explain(kind: SpeechCallKind, call: SpeechCall, error: unknown): AppError {
    const refusal = kind === "transcribe" && error instanceof APIError ? refusalOfAudio(error) : null;
    if (refusal) return refusal;
    const reason = reasonOf(call, error);
    const [level, sentence] = SENTENCES[reason];
    log[level]({ call: kind, reason, ...traceOf(error) }, sentence);
    metrics?.speechFailures.inc({ call: kind, reason });
    return new AppError("voice_unavailable", level === "warn" ? { retry_after: secondsToWait(call) } : {});
  };
}

/** Whether the provider says that the audio is too short to hold a word. */
export function isTooShort(error: unknown): boolean {
  return error instanceof APIError && error.status === 400 && /audio_too_short|too short/i.test(wordsOf(error));
}

// The sentences of whisper-1 and of the gpt-4o models, as of November 2026.
const UNREADABLE =
  /(invalid|unrecognized) file format|could not (be decoded|decode)|corrupted|file is (empty|invalid)|unsupported_format/i;

function refusalOfAudio(error: APIError): AppError | null {
  if (error.status === 413) return new AppError("body_too_large");
  if (error.status === 415) return new AppError("unsupported_audio");
  if (error.status !== 400) return null;
  const words = wordsOf(error);
  if (/longer than [\d.]+ seconds/i.test(words))
    return new AppError("unsupported_audio", {}, "This audio is too long to be heard at once; send it in parts.");
  return UNREADABLE.test(words) || error.param === "file" ? new AppError("unsupported_audio") : null;
}

const wordsOf = (error: APIError) => `${error.code ?? ""} ${error.message}`;

function reasonOf(call: SpeechCall, error: unknown): Reason {
  if (call.wasSilent()) return "timeout";
  if (error instanceof UnusableAnswer || error instanceof SyntaxError) return "unusable_answer";
  // What breaks while a body is read is no error of the SDK's.
  if (!(error instanceof APIError) || error.status === undefined) return "connection";
  const status = Number(error.status);
  if (status === 401 || status === 403) return "key_refused";
  if (status === 429) return error.code === "insufficient_quota" ? "quota_used_up" : "rate_limited";
  return status >= 500 || status === 408 || status === 409 ? "server_error" : "request_refused";
}

/** What helps to find a failure: the provider's name of the request, and codes. Only what looks like one. */
function traceOf(error: unknown): Record<string, unknown> {
  if (!(error instanceof Error)) return {};
  if (!(error instanceof APIError)) return { error: error.name, code: word(Reflect.get(error, "code")) };
  if (error.status !== undefined)
    return { status: error.status, code: word(error.code), providerRequest: word(error.requestID) };
  const { cause } = error;
  return { error: error.name, code: cause instanceof Error ? word(Reflect.get(cause, "code")) : undefined };
}

function word(value: unknown): string | undefined {
  return typeof value === "string" && /^[\w-]{1,64}$/.test(value) ? value : undefined;
}

function secondsToWait(call: SpeechCall): number {
  const pauseMs = call.pauseMs();
  if (pauseMs === null) return RETRY_AFTER_SECONDS.default;
  return Math.min(RETRY_AFTER_SECONDS.most, Math.max(1, Math.ceil(pauseMs / 1000)));
}
