import { z } from "zod";
import { messageContent, type MessageBody } from "./api.ts";

/** The frames of the chat socket `GET /ws/chat?agent_id=…`: JSON text frames in both directions. */

export const CHAT_SUBPROTOCOL = "reef.v1";
export const MAX_FRAME_BYTES = 64 * 1024;
/** A frame of type voice with its sound in it: three minutes of a phone's Opus as base64. */
export const MAX_VOICE_FRAME_BYTES = 1024 * 1024;
/**
 * The binary frame that a frame of type voice announced: eight minutes of a phone's AAC, two of bare 16 kHz. Within the
 * minute that a silent client is given it arrives at half a megabit a second; longer recordings go to /api/voice.
 */
export const MAX_SOUND_BYTES = 4 * 1024 * 1024;
export const CLOSE = {
  policy: 1008,
  tooBig: 1009,
  restart: 1012,
  noHeartbeat: 4408,
  tooManySockets: 4429,
} as const;

/** All that a client sends but voice, which is more than one frame may hold. */
const plainFrameSchema = z.discriminatedUnion("type", [
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
export type PlainFrame = z.infer<typeof plainFrameSchema>;

const voiceFrameSchema = z.strictObject({
  type: z.literal("voice"),
  client_id: z.uuid(),
  /** Without it the next binary frame is the sound. */
  audio: z.base64().min(1).optional(),
  /** As the client calls it; what counts is found in the bytes. */
  format: z.string().max(40).optional(),
  /** Whether this socket hears the answer, too. */
  speak: z.boolean().optional(),
  /** Whose voice; by default the assistant's. */
  voice: z.string().min(1).max(30).optional(),
});
export type VoiceFrame = z.infer<typeof voiceFrameSchema>;

export const clientFrameSchema = z.discriminatedUnion("type", [...plainFrameSchema.options, voiceFrameSchema]);
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
        voice_frame_bytes: number;
        sound_bytes: number;
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
  /** A sentence of the answer, spoken: a playable file by itself, base64. Only the socket that asked gets it. */
  | { type: "audio"; turn_id: string; index: number; format: "mp3"; content: string }
  /** Nothing more of this answer will be heard; `frames` were sent. */
  | { type: "audio_end"; turn_id: string; frames: number; reason: AudioEnd }
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

/** `limit`: the day's voice is used up. `failed`: the voice, or the answer, failed. The text goes on unharmed. */
export type AudioEnd = "done" | "stopped" | "limit" | "failed";

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
