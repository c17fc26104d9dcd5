import { z } from "zod";
import { id, time } from "./fields.ts";

/** The JSON bodies of /api/user. */

export const userSchema = z.object({
  id,
  email: z.string(),
  name: z.string().nullable(),
  avatar_url: z.string().nullable(),
  email_verified: z.boolean(),
  timezone: z.string(),
  plan: z.string(),
  created_at: time,
});
