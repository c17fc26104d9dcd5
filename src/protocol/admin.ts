import { z } from "zod";
import { id, time, withoutNul } from "./fields.ts";
import { userSchema } from "./user.ts";

/** The JSON bodies of /api/admin. */

const status = z.enum(["active", "suspended", "deleting"]);
const paging = {
  limit: z.coerce.number().int().min(1).max(200).default(50),
  cursor: id.optional().describe("`next_cursor` of the page before"),
};
const nextCursor = id.nullable().describe("For the next page; null on the last");

export const usersQuery = z.strictObject({
  email: z
    .string()
    .min(1)
    .max(254)
    .refine(...withoutNul)
    .optional()
    .describe("The whole address; compared without case"),
  id: id.optional(),
  status: status.optional(),
  ...paging,
});
export const adminUserSchema = userSchema.extend({ status });
export const usersSchema = z.object({ items: z.array(adminUserSchema), next_cursor: nextCursor });

const amount = z.object({ used: z.number().int(), limit: z.number().int() });
const costs = {
  text_messages: z.number().int().describe("Charged"),
  input_tokens: z.number().int(),
  output_tokens: z.number().int(),
  voice_input_seconds: z.number().int(),
  voice_output_seconds: z.number().int(),
  tts_characters: z.number().int(),
  estimated_cost_usd: z.string().describe("Decimal, by the price table; also of what was not charged"),
  estimated_cost_micro_usd: z.number().int(),
  unpriced: z.number().int().describe("Charged entries of the ledger whose cost is not known"),
};
const by = z.enum(["plan", "user"]);
export const costsQuery = z.strictObject({
  from: z.iso.date().optional().describe("First day, included; by default 29 days before `to`"),
  to: z.iso.date().optional().describe("Last day, included; by default the newest that has begun anywhere"),
  by: by.default("plan"),
  limit: paging.limit,
  cursor: z.string().max(200).optional().describe("`next_cursor` of the page before"),
});
export const costsSchema = z.object({
  from: z.string(),
  to: z.string(),
  by,
  total: z.object(costs).describe("Of the whole period, not of this page"),
  items: z
    .array(
      z.object({
        plan: z.string().optional().describe("`by=plan`: the plan at the time; unknown for the oldest entries"),
        user_id: id.nullable().optional().describe("`by=user`: null for all that have left"),
        ...costs,
      }),
    )
    .describe("Most expensive first"),
  next_cursor: z.string().nullable().describe("For the next page; null on the last"),
});

export const userOverviewSchema = z.object({
  user: adminUserSchema,
  sessions: z.number().int().describe("Signed-in devices"),
  usage: z.object({
    date: z.string().describe("The user's own day"),
    reset_at: time,
    text_messages: amount,
    voice_input_seconds: amount,
    voice_output_seconds: amount,
    tts_characters: amount,
  }),
  costs_30_days: z.object(costs).describe("Of the last 30 days of the user's own"),
  assistants: z.array(
    z.object({
      id,
      agent_id: z.string(),
      status: z.enum(["active", "paused", "deleted"]),
      state: z.enum(["asleep", "waking", "awake", "failed"]),
      state_reason: z.string().nullable(),
      purge_step: z.string().nullable(),
      message_count: z.number().int(),
      last_active_at: time.nullable(),
    }),
  ),
  deletion: z
    .object({
      step: z.string(),
      attempts: z.number().int(),
      last_error: z.string().nullable(),
      requested_at: time,
    })
    .nullable(),
});

export const suspendBody = z.strictObject({
  reason: z
    .string()
    .trim()
    .min(1)
    .max(500)
    .refine(...withoutNul)
    .describe("For the audit log"),
});

/** `actions`: the closed list of db/audit.ts. */
export const auditQueryOf = (actions: readonly [string, ...string[]]) =>
  z.strictObject({ user_id: id.optional(), action: z.enum(actions).optional(), ...paging });
export const auditSchema = z.object({
  items: z.array(
    z.object({
      id,
      at: time,
      actor: z.string().describe("user:…, operator:…, job:… or unknown"),
      action: z.string(),
      user_id: id.nullable().describe("On whom"),
      ip: z.string().nullable(),
      request_id: z.string().nullable(),
      details: z.record(z.string(), z.union([z.string(), z.number()])),
    }),
  ),
  next_cursor: nextCursor,
});
