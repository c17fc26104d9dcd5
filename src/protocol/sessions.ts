import { z } from "zod";
import { id, name, time } from "./fields.ts";

/** The JSON bodies of /api/auth/sessions. */

export const renameSessionBody = z.strictObject({ device_name: name.describe("What the person calls the device") });

export const sessionSchema = z.object({
  id,
  device_name: z.string().nullable(),
  ip: z.string().nullable().describe("Where it last refreshed its tokens from"),
  created_at: time,
  last_used_at: time.describe("When it last signed in or refreshed its tokens"),
  current: z.boolean().describe("true: the device that asks"),
});
