import { z } from "zod";
import { toStorable } from "../lib/text.ts";

/**
 * The frames of the gateway protocol, version 4, as far as Reef reads them. Source: the pinned gateway itself
 * (docs/gateway/protocol.md in its package, and test/gateway/ which proves it). Unknown fields and events are ignored.
 */

const payload = z.looseObject({});

export const inboundFrameSchema = z.discriminatedUnion("type", [
  z.object({ type: z.literal("event"), event: z.string(), payload: payload.optional() }),
  z.object({
    type: z.literal("res"),
    id: z.string(),
    ok: z.boolean(),
    payload: payload.optional(),
    error: z
      .object({
        code: z.string().default("UNKNOWN"),
        message: z.string().default(""),
        retryable: z.boolean().optional(),
      })
      .optional(),
  }),
]);

export const helloSchema = z.object({
  protocol: z.literal(4),
  server: z.object({ version: z.string(), bootId: z.string().optional() }),
});

export const sendAnswerSchema = z.object({ runId: z.string().optional(), status: z.string().default("started") });

const usageSchema = z.object({
  input: z.number().default(0),
  output: z.number().default(0),
  cost: z.object({ total: z.number().default(0) }).prefault({}),
});

/** A row of `chat.history`. The user row carries `"<turn id>:user"`, rows of the answer carry the turn id as `runId`. */
const historyRowSchema = z.object({
  role: z.string(),
  content: z.union([z.string(), z.array(z.looseObject({ type: z.string(), text: z.string().optional() }))]).optional(),
  stopReason: z.string().optional(),
  provider: z.string().optional(),
  idempotencyKey: z.string().optional(),
  usage: usageSchema.optional(),
  openclawAbort: z.unknown().optional(),
  __openclaw: z
    .object({ id: z.string().optional(), runId: z.string().optional(), idempotencyKey: z.string().optional() })
    .prefault({}),
});
export type HistoryRow = z.infer<typeof historyRowSchema>;
export const historySchema = z.object({ messages: z.array(historyRowSchema).default([]) });

export const agentsSchema = z.object({ agents: z.array(z.object({ id: z.string() })) });

export const configSchema = z.object({
  hash: z.string().optional(),
  valid: z.boolean().default(false),
  issues: z.array(z.object({ path: z.string().default(""), message: z.string().default("") })).default([]),
  configRevisionHash: z.string().optional(),
  appliedConfigHash: z.string().optional(),
});

const chatEventSchema = z.object({
  runId: z.string(),
  state: z.string(),
  stopReason: z.string().optional(),
  errorDetail: z.object({ failoverReason: z.string().optional() }).optional(),
  errorKind: z.string().optional(),
});
const agentEventSchema = z.object({
  runId: z.string(),
  stream: z.string(),
  data: z
    .looseObject({
      text: z.string().optional(),
      itemId: z.string().optional(),
      kind: z.string().optional(),
      phase: z.string().optional(),
      progressText: z.string().optional(),
      reason: z.string().optional(),
    })
    .prefault({}),
});

/** What happens in a run (one turn), as the turn engine needs it. Provider text is left behind here. */
export type RunEvent =
  | { kind: "text"; runId: string; itemId: string; text: string }
  | { kind: "preamble"; runId: string; text: string }
  | { kind: "tool"; runId: string }
  | { kind: "retrying"; runId: string; reason: string }
  | { kind: "final"; runId: string }
  | { kind: "aborted"; runId: string; reason: string }
  | { kind: "error"; runId: string; reason: string };

/**
 * Whether a frame is a `chat` delta: it repeats, with all text so far, what an `agent` event has just said, so it is not
 * even parsed. Quotes in a text are escaped: these words stand for themselves only. An unexpected order is parsed.
 */
export function isRepeatedText(frame: string): boolean {
  return frame.startsWith('{"type":"event","event":"chat"') && frame.slice(0, 400).includes('"state":"delta"');
}

/**
 * Reads a gateway event. Text is taken from `agent` events, not from `chat` deltas: those glue the model messages of a
 * turn with tools together and keep the text of attempts that the gateway has retried.
 */
export function readRunEvent(event: string, raw: unknown): RunEvent | null {
  if (event === "chat") return readChatEvent(chatEventSchema.safeParse(raw).data);
  if (event === "agent") return readAgentEvent(agentEventSchema.safeParse(raw).data);
  return null;
}

function readChatEvent(chat: z.infer<typeof chatEventSchema> | undefined): RunEvent | null {
  if (chat?.state === "final") return { kind: "final", runId: chat.runId };
  // "rpc": we asked for it. "stop": the model said nothing. Anything else: the gateway is going down.
  if (chat?.state === "aborted") return { kind: "aborted", runId: chat.runId, reason: chat.stopReason ?? "" };
  if (chat?.state === "error") {
    return {
      kind: "error",
      runId: chat.runId,
      reason: chat.errorDetail?.failoverReason ?? chat.errorKind ?? "unavailable",
    };
  }
  return null;
}

function readAgentEvent(agent: z.infer<typeof agentEventSchema> | undefined): RunEvent | null {
  if (!agent) return null;
  const { runId, stream, data } = agent;
  if (stream === "assistant" && data.text !== undefined && data.itemId)
    return { kind: "text", runId, itemId: data.itemId, text: toStorable(data.text) };
  if (stream === "item" && data.kind === "preamble" && data.progressText)
    return { kind: "preamble", runId, text: toStorable(data.progressText) };
  if (stream === "item" && data.kind === "tool" && data.phase === "start") return { kind: "tool", runId };
  if (stream === "run_status" && data.phase === "retrying")
    return { kind: "retrying", runId, reason: renderRetry(data.reason) };
  return null;
}

/** Why the model is asked again, in words that are ours: nothing of the provider reaches a person. */
function renderRetry(reason: string | undefined): "busy" | "slow" | "unavailable" {
  if (reason === "rate_limit" || reason === "overloaded") return "busy";
  return reason === "timeout" ? "slow" : "unavailable";
}
