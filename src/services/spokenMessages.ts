import { findAssistant } from "../db/assistants.ts";
import type { Queryable } from "../db/connect.ts";
import { getUsage } from "../db/usage.ts";
import { AppError } from "../lib/errors.ts";
import { askUntilAnswered } from "../lib/retry.ts";
import { MESSAGE_MAX_CHARACTERS } from "../protocol/api.ts";
import { acceptMessage, findAccepted, type Accepted, type Claim } from "./conversations.ts";
import { giveBackHeard, hear, settleHeard, type HearingDeps, type Transcript } from "./hearing.ts";
import { holdingSound } from "./soundHold.ts";
import { isRefused, type Refused } from "./usage.ts";

/** How long a message that was heard waits for a Postgres that is away; what was heard is not heard again for nothing. */
const ACCEPT_MS = 10_000;

/** A message as it was spoken. */
export interface SpokenMessage {
  userId: string;
  assistantId: string;
  clientId: string;
  bytes: Uint8Array;
  /** Whose voice is to answer, where it was asked for by name. */
  voice: string | null;
}

/**
 * Accepts what was said as the user's message, its seconds charged in the same transaction. The same client_id is the
 * same message, whatever is heard the second time, and costs nothing. An expected "no" comes back as a value, before
 * anything is spent where that can be known: as `acceptMessage`, and `nothing_heard`, `message_too_long`,
 * `voice_not_in_plan`. Throws as `hear` does; then nothing was charged. `listening` is told that it begins.
 */
export async function acceptSpoken(
  deps: HearingDeps,
  claim: Claim,
  spoken: SpokenMessage,
  { signal, listening }: { signal: AbortSignal; listening: () => void },
): Promise<Accepted | Refused | AppError> {
  const before = await findAccepted(deps, spoken);
  if (before) return before;
  const outcome = await holdingSound(deps, spoken, signal, async () => {
    // Whoever held it may have had it accepted.
    const meanwhile = await findAccepted(deps, spoken);
    if (meanwhile) return meanwhile;
    // In here: what another process accepts between two looks must not be refused for the message that it used up.
    const refused = await findRefusal(deps, spoken);
    if (refused) return refused;
    listening();
    const heard = await hear(deps, { userId: spoken.userId, bytes: spoken.bytes, signal });
    return isRefused(heard) ? heard : acceptHeard(deps, claim, spoken, heard, signal);
  });
  // Without Redis somebody may have used the day's last for this very message.
  return isRefused(outcome) ? ((await findAccepted(deps, spoken)) ?? outcome) : outcome;
}

/** A look at what would refuse the message anyway. What is decided then is decided in its transaction. */
async function findRefusal(deps: HearingDeps, spoken: SpokenMessage): Promise<Refused | AppError | null> {
  const { userId, assistantId, voice } = spoken;
  const [assistant, usage] = await Promise.all([
    findAssistant(deps.sql, { userId, id: assistantId }),
    getUsage(deps.sql, userId),
  ]);
  if (!assistant) return new AppError("assistant_not_found");
  if (!usage.active) return new AppError("account_suspended");
  if (assistant.status === "paused") return new AppError("assistant_paused");
  if (voice !== null && !usage.voices.includes(voice))
    return new AppError("voice_not_in_plan", { upgrade_to: usage.upgradeTo });
  return usage.used.textMessages >= usage.limits.textMessages ? { kind: "textMessages", usage } : null;
}

async function acceptHeard(
  deps: HearingDeps,
  claim: Claim,
  spoken: SpokenMessage,
  heard: Transcript,
  signal: AbortSignal,
): Promise<Accepted | Refused | AppError> {
  const { userId, assistantId, clientId } = spoken;
  const message = { userId, assistantId, clientId, content: heard.text };
  if (message.content === "") return new AppError("nothing_heard");
  const settle = (sql: Queryable) => settleHeard(deps, sql, userId, heard);
  const accept = () => acceptMessage(deps, claim, message, { anyText: true, settle });
  const enough = AbortSignal.any([signal, AbortSignal.timeout(ACCEPT_MS)]);
  const told = (err: unknown) => deps.log.warn({ err, user_id: userId }, "a spoken message waits to be accepted");
  let settled = false;
  try {
    if (message.content.length > MESSAGE_MAX_CHARACTERS) return new AppError("message_too_long");
    const accepted = await askUntilAnswered(accept, enough, told, deps.clock);
    if (accepted === null) return new AppError("service_unavailable", { retry_after: 2 });
    settled = !(accepted instanceof AppError) && !isRefused(accepted) && !accepted.repeated;
    return accepted;
  } finally {
    // Where only the answer to a commit was lost, this changes nothing.
    if (!settled) await giveBackHeard(deps, userId, heard);
  }
}
