import { z } from "zod";
import { id, time, withoutNul } from "./fields.ts";

/** The JSON bodies of the HTTP API: what validates them also describes them in /openapi.json. */

export const acceptedSchema = z.object({ message: z.string() });

const displayName = z
  .string()
  .trim()
  .min(1)
  .max(60)
  .refine(...withoutNul)
  .describe("What the person calls the assistant");
const voice = z.string().min(1).max(30).describe("One of the plan's voices");
export const createAssistantBody = z.strictObject({ display_name: displayName.optional(), voice: voice.optional() });
export const updateAssistantBody = z
  .strictObject({ display_name: displayName.optional(), voice: voice.optional() })
  .refine((body) => body.display_name !== undefined || body.voice !== undefined, "give display_name or voice");

export const assistantSchema = z.object({
  id,
  agent_id: z.string(),
  display_name: z.string(),
  voice: z.string(),
  model: z.string(),
  status: z.enum(["active", "paused", "deleted"]),
  paused_by_plan: z.literal(true).optional().describe("Paused because the plan has no room for it; comes back with it"),
  ready: z.boolean().describe("true: a message is answered without waiting for a wake-up"),
  state: z.enum(["asleep", "waking", "awake", "failed"]),
  state_reason: z.string().optional(),
  last_active_at: time.nullable(),
  message_count: z.number().int(),
  created_at: time,
  updated_at: time,
});
export type AssistantBody = z.infer<typeof assistantSchema>;

/** A stored message, the same over HTTP and, with `type: "message"`, on the chat socket. */
export const messageSchema = z.object({
  id,
  seq: z.number().int().describe("1, 2, 3 … without gaps per assistant"),
  role: z.enum(["user", "assistant"]),
  content: z.string(),
  agentId: z.string(),
  turn_id: id,
  client_id: id.optional().describe("As the client sent it, on the user's messages"),
  timestamp: time,
  finish: z.enum(["complete", "stopped", "error"]),
});
export type MessageBody = z.infer<typeof messageSchema>;

export const MESSAGE_MAX_CHARACTERS = 32_000;
export const messageContent = z
  .string()
  .min(1)
  .max(MESSAGE_MAX_CHARACTERS)
  .refine(...withoutNul);
export const sendMessageBody = z.strictObject({
  content: messageContent,
  client_id: id,
});
export const sentMessageSchema = z.object({
  message: messageSchema,
  turn: z.object({ id, status: z.enum(["queued", "dispatched", "streaming", "done", "failed", "stopped"]) }),
});

const seq = z.coerce.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
export const messagesQuery = z.strictObject({
  after_seq: seq.optional().describe("Only messages after this number, oldest first"),
  before_seq: seq.optional().describe("Only messages before this number, the newest of them"),
  limit: z.coerce.number().int().min(1).max(200).default(50),
});
export const messagesSchema = z.object({
  items: z.array(messageSchema),
  last_seq: z.number().int(),
  has_more: z.boolean(),
});

export const idParam = z.strictObject({ id });

export const errorSchema = z.object({
  error: z.string().describe("A sentence for people"),
  code: z.string().describe("For programs; from a closed table"),
  request_id: z.string(),
  details: z.array(z.object({ path: z.string(), message: z.string() })).optional(),
  retry_after: z.number().optional().describe("Seconds"),
  reset_at: time.optional(),
  limit: z.number().optional(),
  used: z.number().optional(),
  kind: z.string().optional().describe("Which of the day's amounts is used up, as in /api/user/usage"),
  upgrade_to: z.string().nullable().optional(),
});

const gatewaysHealth = z.object({ ready: z.number().int(), total: z.number().int() });
export const healthSchema = z.object({
  status: z.enum(["ok", "degraded"]),
  timestamp: time,
  uptime: z.number().describe("Seconds"),
  db: z.boolean(),
  redis: z.boolean(),
  gateways: gatewaysHealth,
  down: z.array(z.string()).optional().describe("What is not working"),
});
export const probeSchema = z.object({
  status: z.enum(["ok", "unavailable"]),
  waiting_for: z.array(z.string()).optional(),
});
export const metricsSchema = z.string().describe("Prometheus text format 0.0.4");
