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
  chat.hub.announce(peer.assistantId, { type: "typing", agentId: peer.agentId, role: "user" }, peer.id);
  inFlight.add("listening", async () => {
    try {
      await listen(deps, chat, inFlight.signal, socket, voice);
    } catch (error) {
      // Another process listens to it when it is sent again: this one ends.
      if (!inFlight.signal.aborted) refuse(deps, peer, voice.frame, error);
    } finally {
      slot.done(voice);
    }
  });
}

async function listen(
  deps: Deps,
  chat: Chat,
  signal: AbortSignal,
  { peer, speaker }: Speaking,
  { frame, bytes }: Voice,
): Promise<void> {
  const { userId, assistantId } = peer;
  const voice = (frame.speak && frame.voice) || null;
  const spoken = { userId, assistantId, clientId: frame.client_id, bytes, voice };
  const accepted = await acceptSpoken(deps, chat.engine.claim, spoken, signal);
  const turn = acknowledge(chat, peer, frame.client_id, accepted);
  if (!frame.speak) return;
  const assistant = await findAssistant(deps.sql, { userId, id: assistantId });
  const assistantVoice = assistant?.voice ?? null;
  speaker.speak({ turnId: turn.id, voice, assistantVoice }, chat.hub.sentTo(peer, turn.id));
}
