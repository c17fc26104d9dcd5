import { z } from "zod";
import { findAssistantByAgent, type Assistant } from "../db/assistants.ts";
import { findRunningTurn } from "../db/turns.ts";
import { getUsage, type Usage } from "../db/usage.ts";
import type { Deps } from "../deps.ts";
import { toAppError } from "../http/problem.ts";
import { MESSAGE_MAX_CHARACTERS } from "../protocol/api.ts";
import { CLOSE, MAX_FRAME_BYTES, MAX_SOUND_BYTES, MAX_VOICE_FRAME_BYTES, type ServerFrame } from "../protocol/chat.ts";
import { authenticate, type Identity } from "../services/accessTokens.ts";
import { wakeAssistant } from "../services/assistants.ts";
import { findResetReason } from "../services/chatRooms.ts";
import type { OpenSocket, OpenSockets } from "../services/openSockets.ts";

const afterSeqSchema = z.coerce.number().int().min(0).max(Number.MAX_SAFE_INTEGER);

/** What an upgraded socket starts with: everything was checked before the upgrade, so `open` has nothing to wait for. */
export type Opening =
  | {
      ok: true;
      identity: Identity;
      assistant: Assistant;
      afterSeq: number;
      reset: "too_far_behind" | "ahead" | null;
      connected: Extract<ServerFrame, { type: "connected" }>;
      turn: { id: string; seq: number } | null;
      socket: OpenSocket;
    }
  | { ok: false; code: number; reason: string };

/** Checks who wants to talk with whom. Never throws: every "no" is a close. */
export async function prepare(deps: Deps, openSockets: OpenSockets, url: URL, token: string): Promise<Opening> {
  try {
    const identity = await authenticate(deps, token);
    const assistant = await findAssistantByAgent(deps.sql, {
      userId: identity.userId,
      agentId: url.searchParams.get("agent_id") ?? "",
    });
    if (!assistant) return { ok: false, code: CLOSE.policy, reason: "there is no such assistant" };
    await wakeAssistant(deps, identity, assistant.id);
    const usage = await getUsage(deps.sql, identity.userId);
    const after = afterSeqSchema.safeParse(url.searchParams.get("after_seq") ?? undefined);
    const wanted = after.data ?? assistant.lastSeq;
    const reset = findResetReason(wanted, assistant.lastSeq);
    const afterSeq = reset ? assistant.lastSeq : wanted;
    const turn = await findRunningTurn(deps.sql, { userId: identity.userId, assistantId: assistant.id });
    const connected = renderConnected(deps, assistant, usage);
    // Last: who is refused for another reason takes no place.
    const socket = await openSockets.claim(identity.userId, assistant.agentId);
    if (!socket) return { ok: false, code: CLOSE.tooManySockets, reason: "too many sockets" };
    return { ok: true, identity, assistant, afterSeq, reset, turn, connected, socket };
  } catch (error) {
    const known = toAppError(error);
    if (known && known.status < 500) return { ok: false, code: CLOSE.policy, reason: known.message.slice(0, 100) };
    deps.log[known ? "warn" : "error"]({ err: error }, "chat socket could not be opened");
    return { ok: false, code: CLOSE.restart, reason: "not ready; try again" };
  }
}

function renderConnected(deps: Deps, assistant: Assistant, { plan, used, limits, resetAt }: Usage) {
  return {
    type: "connected" as const,
    agentId: assistant.agentId,
    assistant_id: assistant.id,
    last_seq: assistant.lastSeq,
    state: assistant.state,
    plan,
    heartbeat_ms: deps.config.CHAT_PING_MS,
    limits: {
      message_characters: MESSAGE_MAX_CHARACTERS,
      frame_bytes: MAX_FRAME_BYTES,
      voice_frame_bytes: MAX_VOICE_FRAME_BYTES,
      sound_bytes: MAX_SOUND_BYTES,
      text_messages: { used: used.textMessages, limit: limits.textMessages, reset_at: resetAt.toISOString() },
    },
  };
}
