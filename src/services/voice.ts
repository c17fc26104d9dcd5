import { findAssistantByAgent } from "../db/assistants.ts";
import type { Queryable } from "../db/connect.ts";
import { AppError } from "../lib/errors.ts";
import { renderSpokenText } from "../lib/spokenText.ts";
import { SPEAK_MAX_CHARACTERS, type SpeechFormat } from "../protocol/voice.ts";
import type { Identity } from "./accessTokens.ts";
import { giveBackHeard, hear, settleHeard, type HearingDeps, type Transcript } from "./hearing.ts";
import { speak, type SpeakingDeps, type Speech } from "./speaking.ts";
import { isRefused, type Refused } from "./usage.ts";

/** What was heard, as its speaker is told. */
export type Heard = Pick<Transcript, "text" | "durationSeconds">;

/**
 * Writes down what a user said; charged when it returns. `keep` keeps the answer of an idempotent request in the
 * transaction that charges it, and says whether this run is the first to answer: only the first is charged. Throws as
 * `hear` does.
 */
export async function transcribe(
  deps: HearingDeps,
  actor: Identity,
  input: { bytes: Uint8Array; signal: AbortSignal; keep: ((sql: Queryable, heard: Heard) => Promise<boolean>) | null },
): Promise<Heard | Refused> {
  const { bytes, signal, keep } = input;
  const { userId } = actor;
  const heard = await hear(deps, { userId, bytes, signal });
  if (isRefused(heard) || heard.reservation === null) return heard;
  let charged = false;
  try {
    charged = await deps.sql.begin(async (sql) => {
      if (keep && !(await keep(sql, heard))) return false;
      await settleHeard(deps, sql, userId, heard);
      return true;
    });
  } finally {
    // Where only the answer to a commit was lost, this changes nothing.
    if (!charged) await giveBackHeard(deps, userId, heard);
  }
  return heard;
}

/**
 * Speaks a text for a user, in the voice asked for or the assistant's. Throws `nothing_to_speak`, `assistant_not_found`,
 * also for somebody else's, and as `speak` does.
 */
export async function speakText(
  deps: SpeakingDeps,
  actor: Identity,
  input: {
    /** Markdown. */
    text: string;
    voice: string | null;
    agentId: string | null;
    format: SpeechFormat;
    speed: number;
    signal: AbortSignal;
    isDraining: () => boolean;
  },
): Promise<Speech | Refused> {
  const { userId } = actor;
  const { agentId, text: markdown, ...how } = input;
  const assistant = agentId === null ? null : await findAssistantByAgent(deps.sql, { userId, agentId });
  if (agentId !== null && !assistant) throw new AppError("assistant_not_found");
  const text = renderSpokenText(markdown, SPEAK_MAX_CHARACTERS);
  if (text === "") throw new AppError("nothing_to_speak");
  return speak(deps, { ...how, userId, text, assistantVoice: assistant?.voice ?? null });
}
