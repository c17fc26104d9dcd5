import { findAssistant } from "../db/assistants.ts";
import { findAnswer } from "../db/messages.ts";
import type { Turn } from "../db/turns.ts";
import type { Deps } from "../deps.ts";
import type { AppError } from "../lib/errors.ts";
import type { InFlight } from "../lib/inFlight.ts";
import type { Peer } from "../services/chatRooms.ts";
import { stopTurns, type Accepted } from "../services/conversations.ts";
import { acceptSpoken } from "../services/spokenMessages.ts";
import type { Speaker } from "../services/speaker.ts";
import type { Refused } from "../services/usage.ts";
import { acknowledge, inTrace, refuse, type Chat } from "./chatFrames.ts";
import type { Voice, VoiceSlot } from "./voiceSlot.ts";

/** What a voice needs of its socket, which may be gone before it was listened to. */
export interface Speaking {
  peer: Peer;
  slot: VoiceSlot;
  speaker: Speaker;
}

/**
 * Listens to what was said, beside the socket's other frames. The socket may close meanwhile: what was received is
 * accepted and answered all the same, and the client finds it when it sends the same client_id again.
 */
export function beginVoice(deps: Deps, chat: Chat, inFlight: InFlight, socket: Speaking, voice: Voice): void {
  const { peer, slot } = socket;
  inFlight.add("listening", async () => {
    try {
      const turn = await inTrace(deps, peer, "voice", () => listen(deps, chat, inFlight.signal, socket, voice));
      if (voice.stopped) await stop(deps, socket, turn);
    } catch (error) {
      // Another process listens to it when it is sent again: this one ends.
      if (!inFlight.signal.aborted) refuse(deps, peer, { type: "voice", client_id: voice.clientId }, error);
    } finally {
      slot.done();
    }
  });
}

async function listen(
  deps: Deps,
  chat: Chat,
  signal: AbortSignal,
  { peer, speaker }: Speaking,
  { clientId, bytes, speak, voice }: Voice,
): Promise<Turn> {
  const { userId, assistantId } = peer;
  const spoken = { userId, assistantId, clientId, bytes, voice };
  const typing = { type: "typing", agentId: peer.agentId, role: "user" } as const;
  const listening = () => chat.hub.announce(assistantId, typing, peer.id);
  // All that is to be read is read before the ack: after it nothing may fail any more, and a stop finds what it stops.
  const assistant = speak ? await findAssistant(deps.sql, { userId, id: assistantId }) : null;
  const accepted = await acceptSpoken(deps, chat.engine.claim, spoken, { signal, listening });
  // One that ended before this device came is nowhere in what it is sent.
  const earlier =
    speak && isRepeated(accepted) ? await findAnswer(deps.sql, { userId, turnId: accepted.turn.id }) : null;
  const turn = acknowledge(deps, chat, peer, clientId, accepted);
  if (!speak) return turn;
  const sent = chat.hub.sentTo(peer, turn.id);
  const wanted = { turnId: turn.id, voice, assistantVoice: assistant?.voice ?? null };
  speaker.speak(wanted, { ...sent, answer: earlier ?? sent.answer });
  return turn;
}

/** What was said is accepted by now: only its answer is stopped, and a failure is none of the message's. */
async function stop(deps: Deps, { peer, speaker }: Speaking, turn: Turn): Promise<void> {
  const { userId, assistantId } = peer;
  speaker.stop(turn.id);
  await stopTurns(deps, { userId, assistantId, turnId: turn.id }).catch((error: unknown) =>
    refuse(deps, peer, { type: "stop" }, error),
  );
}

function isRepeated(accepted: Accepted | Refused | AppError): accepted is Accepted {
  return "repeated" in accepted && accepted.repeated;
}
