import type { Message } from "../db/messages.ts";
import type { Turn } from "../db/turns.ts";
import type { Deps } from "../deps.ts";
import { ERRORS } from "../lib/errors.ts";
import type { ChatHub } from "./chatHub.ts";
import type { Outcome } from "./conversations.ts";
import { noteTurnEnd } from "./turnTrace.ts";

/** Who is told of a turn's end. */
export type Hearers = Pick<ChatHub, "messageStored" | "announce">;

/** Tells everybody of a turn that has ended, once: by whoever stored its end. The message first, then why it failed. */
export function tellTurnEnd(
  deps: Pick<Deps, "traces" | "metrics" | "processId">,
  hub: Hearers,
  turn: Pick<Turn, "id" | "assistantId" | "userId" | "gatewayId">,
  message: Message,
  outcome: Outcome,
): void {
  hub.messageStored(turn.assistantId, message.seq, message);
  noteTurnEnd(deps, turn, outcome);
  if (outcome.status !== "failed") return;
  const { code } = outcome;
  hub.announce(turn.assistantId, { type: "error", code, message: ERRORS[code].message, turn_id: turn.id });
}
