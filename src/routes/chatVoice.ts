import { findAssistant } from "../db/assistants.ts";
import type { Deps } from "../deps.ts";
import type { InFlight } from "../lib/inFlight.ts";
import type { Peer } from "../services/chatRooms.ts";
import { acceptSpoken } from "../services/spokenMessages.ts";
import type { Speaker } from "../services/speaker.ts";
import { acknowledge, refuse, type Chat } from "./chatFrames.ts";
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
      await listen(deps, chat, inFlight.signal, socket, voice);
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
): Promise<void> {
  const { userId, assistantId } = peer;
  const spoken = { userId, assistantId, clientId, bytes, voice };
  const typing = { type: "typing", agentId: peer.agentId, role: "user" } as const;
  const listening = () => chat.hub.announce(assistantId, typing, peer.id);
  const accepted = await acceptSpoken(deps, chat.engine.claim, spoken, { signal, listening });
  const turn = acknowledge(chat, peer, clientId, accepted);
  if (!speak) return;
  const assistant = await findAssistant(deps.sql, { userId, id: assistantId });
  const assistantVoice = assistant?.voice ?? null;
  speaker.speak({ turnId: turn.id, voice, assistantVoice }, chat.hub.sentTo(peer, turn.id));
}
