import { z } from "zod";
import { messageContent, type MessageBody } from "./api.ts";

/** The frames of the chat socket `GET /ws/chat?agent_id=…`: JSON text frames in both directions. */

export const CHAT_SUBPROTOCOL = "reef.v1";
export const MAX_FRAME_BYTES = 64 * 1024;
export const CLOSE = {
  policy: 1008,
  tooBig: 1009,
  restart: 1012,
  noHeartbeat: 4408,
  tooManySockets: 4429,
} as const;

export const clientFrameSchema = z.discriminatedUnion("type", [
  z.strictObject({
    type: z.literal("message"),
    content: messageContent,
    client_id: z.uuid().optional(),
  }),
  z.strictObject({ type: z.literal("typing") }),
  z.strictObject({ type: z.literal("stop"), turn_id: z.uuid().optional() }),
  z.strictObject({ type: z.literal("resume"), after_seq: z.number().int().min(0) }),
  z.strictObject({ type: z.literal("auth"), token: z.string().min(1).max(4096) }),
  z.strictObject({ type: z.literal("ping") }),
]);
export type ClientFrame = z.infer<typeof clientFrameSchema>;

export type ServerFrame =
  | {
      type: "connected";
      agentId: string;
      assistant_id: string;
      last_seq: number;
      state: string;
      plan: string;
      heartbeat_ms: number;
      limits: {
        message_characters: number;
        frame_bytes: number;
        text_messages: { used: number; limit: number; reset_at: string };
      };
    }
  | { type: "state"; state: string; reason?: string }
  /** What came after the client's number is not sent: it loads the history, whose newest message has `last_seq`. */
  | { type: "reset"; last_seq: number; reason: "too_far_behind" | "ahead" }
  | { type: "ack"; client_id: string; message_id: string; seq: number; turn_id: string }
  | { type: "typing"; agentId: string; role: "user" | "assistant" }
  | { type: "chunk"; content: string; agentId: string; turn_id: string; offset: number }
  | ({ type: "message" } & MessageBody)
  | ErrorFrame
  /** The day's use: after each turn, and when one of the amounts comes to 80 % and to 100 %. */
  | {
      type: "usage";
      text_messages: { used: number; limit: number };
      voice_input_seconds: { used: number; limit: number };
      voice_output_seconds: { used: number; limit: number };
      tts_characters: { used: number; limit: number };
      reset_at: string;
    }
  /**
   * The plan, or what it rests on (a payment that failed, an end that was set), has changed: what it gives from now on.
   * The rest says GET /api/subscription; which assistants are paused, GET /api/assistants.
   */
  | {
      type: "plan";
      plan: string;
      upgrade_to: string | null;
      limits: {
        assistants: number;
        text_messages: number;
        voice_input_seconds: number;
        voice_output_seconds: number;
        tts_characters: number;
      };
      voices: string[];
    }
  | { type: "pong" }
  | { type: "disconnected"; reason: string; retry_after_ms: number };

export interface ErrorFrame {
  type: "error";
  code: string;
  message: string;
  turn_id?: string;
  client_id?: string;
  retry_after?: number;
  reset_at?: string;
  limit?: number;
  used?: number;
  kind?: string;
  upgrade_to?: string | null;
  details?: { path: string; message: string }[];
}
