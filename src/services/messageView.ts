import type { Message } from "../db/messages.ts";
import type { MessageBody } from "../protocol/api.ts";

/** A stored message as the contract shows it. */
export function renderMessage(message: Message, agentId: string): MessageBody {
  return {
    id: message.id,
    seq: message.seq,
    role: message.role,
    content: message.content,
    agentId,
    turn_id: message.turnId,
    ...(message.clientId ? { client_id: message.clientId } : {}),
    timestamp: message.createdAt.toISOString(),
    finish: message.finish ?? "complete",
  };
}
