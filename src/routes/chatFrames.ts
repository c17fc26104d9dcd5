import { z } from "zod";
import type { Deps } from "../deps.ts";
import { AppError, type ErrorCode } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import { renderIssue } from "../http/env.ts";
import { toAppError } from "../http/problem.ts";
import { clientFrameSchema, type ClientFrame, type ErrorFrame } from "../protocol/chat.ts";
import { authenticate } from "../services/accessTokens.ts";
import type { ChatHub } from "../services/chatHub.ts";
import type { Peer } from "../services/chatRooms.ts";
import type { Starter } from "../services/turnEngine.ts";
import { acceptMessage, stopTurns } from "../services/conversations.ts";
import { isRefused, renderRefusal } from "../services/usage.ts";

/** What a message meets: the devices of its conversation, and who answers it. */
interface Chat {
  hub: ChatHub;
  engine: Starter;
}

/** Does what a client's frame asks. Every "no" is an error frame; the socket lives on. */
export async function handleFrame(deps: Deps, chat: Chat, peer: Peer, raw: string | Buffer): Promise<void> {
  const json = parseJson(raw);
  const clientId = clientIdSchema.safeParse(json).data?.client_id;
  const frame = json instanceof AppError ? json : parseFrame(json);
  if (frame instanceof AppError) return void peer.send(renderErrorFrame(frame, clientId));
  try {
    await actOn(deps, chat, peer, frame);
  } catch (error) {
    const known = toAppError(error);
    if (!known) deps.log.error({ err: error, frame: frame.type, user_id: peer.userId }, "frame failed");
    peer.send(renderErrorFrame(known ?? new AppError("internal_error"), clientId));
  }
}

async function actOn(deps: Deps, chat: Chat, peer: Peer, frame: ClientFrame): Promise<void> {
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
      return sendMessage(deps, chat, peer, frame.content, frame.client_id ?? newId());
  }
}

async function sendMessage(deps: Deps, chat: Chat, peer: Peer, content: string, clientId: string): Promise<void> {
  const { hub, engine } = chat;
  const accepted = await acceptMessage(deps, engine.claim, {
    userId: peer.userId,
    assistantId: peer.assistantId,
    clientId,
    content,
  });
  if (accepted instanceof AppError) throw accepted;
  if (isRefused(accepted)) throw renderRefusal(accepted);
  const { message, turn } = accepted;
  peer.send({ type: "ack", client_id: clientId, message_id: message.id, seq: message.seq, turn_id: turn.id });
  hub.messageStored(peer.assistantId, message.seq, message);
  engine.start(accepted.claimed);
}

/** Names the refused message also where its frame is not valid. */
const clientIdSchema = z.object({ client_id: z.uuid() });

function parseJson(raw: string | Buffer): unknown {
  if (typeof raw !== "string")
    return new AppError("invalid_frame", {}, "Send text frames with JSON; binary frames are not understood.");
  try {
    return JSON.parse(raw);
  } catch {
    return new AppError("invalid_frame", {}, "The frame is not valid JSON.");
  }
}

function parseFrame(json: unknown): ClientFrame | AppError {
  const result = clientFrameSchema.safeParse(json);
  if (result.success) return result.data;
  const { issues } = result.error;
  const inContent = (code: string) => issues.some((issue) => issue.code === code && issue.path[0] === "content");
  const code = inContent("too_big") ? "message_too_long" : inContent("custom") ? "validation_failed" : "invalid_frame";
  return new AppError(code, { details: issues.flatMap(renderIssue) });
}

function renderErrorFrame(error: AppError, clientId?: string): ErrorFrame {
  const code: ErrorCode = error.code;
  return { type: "error", code, message: error.message, ...(clientId ? { client_id: clientId } : {}), ...error.extras };
}
