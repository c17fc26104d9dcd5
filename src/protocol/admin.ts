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
  entitlements: z.array(
    z.object({
      source: z.enum(["stripe", "grant", "apple", "google"]),
      plan: z.string(),
      status: z.string(),
      current_period_end: time.nullable(),
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

export const grantBody = z.strictObject({
  plan: z.string().min(1).max(30),
  until: z.iso.datetime({ offset: true }).optional().describe("Without it, until it is ended"),
});

/** `actions`: the closed list of db/audit.ts. */
export const auditQueryOf = (actions: readonly [string, ...string[]]) =>
  z.strictObject({ user_id: id.optional(), action: z.enum(actions).optional(), ...paging });
export const auditSchema = z.object({
  items: z.array(
    z.object({
      id,
      at: time,
      actor: z.string().describe("user:…, operator:…, job:…, stripe or unknown"),
      action: z.string(),
      user_id: id.nullable().describe("On whom"),
      ip: z.string().nullable(),
      request_id: z.string().nullable(),
      details: z.record(z.string(), z.union([z.string(), z.number()])),
    }),
  ),
  next_cursor: nextCursor,
});
