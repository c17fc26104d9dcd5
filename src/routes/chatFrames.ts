import type { Turn } from "../db/turns.ts";
import type { Deps } from "../deps.ts";
import { AppError, type ErrorCode } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import { toAppError } from "../http/problem.ts";
import type { ErrorFrame, PlainFrame } from "../protocol/chat.ts";
import { authenticate } from "../services/accessTokens.ts";
import type { ChatHub } from "../services/chatHub.ts";
import type { Peer } from "../services/chatRooms.ts";
import type { Starter } from "../services/turnEngine.ts";
import { acceptMessage, stopTurns, type Accepted } from "../services/conversations.ts";
import { tracedRoot } from "../lib/trace.ts";
import { isRefused, renderRefusal, type Refused } from "../services/usage.ts";

/** What a message meets: the devices of its conversation, and who answers it. */
export interface Chat {
  hub: ChatHub;
  engine: Starter;
}

/** Does what a client's frame asks. Every "no" is an error frame; the socket lives on. */
export async function handleFrame(deps: Deps, chat: Chat, peer: Peer, frame: PlainFrame): Promise<void> {
  try {
    await actOn(deps, chat, peer, frame);
  } catch (error) {
    refuse(deps, peer, frame, error);
  }
}

/** Says no to a frame. What is not an AppError is logged and says nothing. */
export function refuse(
  deps: Pick<Deps, "log">,
  peer: Peer,
  frame: { type: string; client_id?: string | undefined },
  error: unknown,
): void {
  const known = toAppError(error);
  if (!known)
    deps.log.error(
      { err: error, frame: frame.type, user_id: peer.userId, assistant_id: peer.assistantId },
      "frame failed",
    );
  peer.send(renderErrorFrame(known ?? new AppError("internal_error"), frame.client_id));
}

async function actOn(deps: Deps, chat: Chat, peer: Peer, frame: PlainFrame): Promise<void> {
  const { hub } = chat;
  const key = { userId: peer.userId, assistantId: peer.assistantId };
  switch (frame.type) {
    case "ping":
      return void peer.send({ type: "pong" });
    case "typing":
      return hub.announce(peer.assistantId, { type: "typing", agentId: peer.agentId, role: "user" }, peer.id);
    case "stop":
      return stopTurns(deps, { ...key, turnId: frame.turn_id ?? null });
    case "resume":
      return hub.resume(peer, frame.after_seq);
    case "auth": {
      const identity = await authenticate(deps, frame.token);
      if (identity.userId !== peer.userId) throw new AppError("forbidden");
      peer.sessionId = identity.sessionId;
      peer.expiresAt = identity.expiresAt;
      return;
    }
    case "message":
      return inTrace(deps, peer, "message", () =>
        sendMessage(deps, chat, peer, frame.content, frame.client_id ?? newId()),
      );
  }
}

async function sendMessage(deps: Deps, chat: Chat, peer: Peer, content: string, clientId: string): Promise<void> {
  const accepted = await acceptMessage(deps, chat.engine.claim, {
    userId: peer.userId,
    assistantId: peer.assistantId,
    clientId,
    content,
  });
  acknowledge(deps, chat, peer, clientId, accepted);
}

/** What is done for a message that came over the socket is one trace. */
export function inTrace<T>(deps: Pick<Deps, "traces">, peer: Peer, frame: "message" | "voice", work: () => Promise<T>) {
  const attributes = { "reef.user_id": peer.userId, "reef.assistant_id": peer.assistantId, "reef.frame": frame };
  return tracedRoot(deps.traces, { name: `chat ${frame}`, attributes }, work);
}

/** Tells what became of a message, and has it answered. Throws where it was refused. */
export function acknowledge(
  deps: Pick<Deps, "metrics">,
  { hub, engine }: Chat,
  peer: Peer,
  clientId: string,
  accepted: Accepted | Refused | AppError,
): Turn {
  if (accepted instanceof AppError) throw accepted;
  if (isRefused(accepted)) throw renderRefusal(deps, accepted);
  const { message, turn } = accepted;
  peer.send({ type: "ack", client_id: clientId, message_id: message.id, seq: message.seq, turn_id: turn.id });
  hub.messageStored(peer.assistantId, message.seq, message);
  engine.start(accepted.claimed);
  return turn;
}

export function renderErrorFrame(error: AppError, clientId?: string): ErrorFrame {
  const code: ErrorCode = error.code;
  return { type: "error", code, message: error.message, ...(clientId ? { client_id: clientId } : {}), ...error.extras };
}
