import { z } from "zod";
import { id, name, password, time, timezone } from "./fields.ts";

/** The JSON bodies of /api/user. */

const user = {
  id,
  email: z.string(),
  name: z.string().nullable(),
  avatar_url: z.string().nullable(),
  email_verified: z.boolean(),
  timezone: z.string(),
  plan: z.string(),
  created_at: time,
};
export const userSchema = z.object(user);

export const profileSchema = z.object({
  ...user,
  timezone_changed_at: time.nullable().describe("The next change is possible 24 hours later; null: at any time"),
  has_password: z.boolean().describe("false: signs in with a provider only"),
  providers: z.array(z.enum(["apple", "google"])).describe("Linked accounts elsewhere"),
});

// Not z.url(): it takes blanks and line ends, which URL parsers drop.
const avatarUrl = z
  .string()
  .max(2048)
  .refine((value) => /^https:\/\/[^\s\p{Cc}]+$/u.test(value) && URL.canParse(value), "must be an https address")
  .meta({ format: "uri" });
export const profileBody = z
  .strictObject({
    name: name.nullable().optional().describe("null clears it"),
    avatar_url: avatarUrl.nullable().optional().describe("https address of a picture; null clears it"),
    timezone: timezone.optional().describe("IANA time zone, e.g. Europe/Berlin; changed at most once in 24 hours"),
  })
  .refine((body) => Object.values(body).some((value) => value !== undefined), "give name, avatar_url or timezone");

export const passwordBody = z.strictObject({ current_password: z.string().min(1).max(256), new_password: password });

const amount = z.object({ used: z.number().int(), limit: z.number().int(), remaining: z.number().int() });
const day = z.string().describe("A day of the person's own, e.g. 2026-11-24");
export const usageQuery = z.strictObject({
  days: z.coerce.number().int().min(1).max(90).optional().describe("Adds the history of so many days, today included"),
});
export const usageSchema = z.object({
  date: day,
  timezone: z.string(),
  reset_at: time,
  plan: z.string(),
  text_messages: amount,
  voice_input_seconds: amount,
  voice_output_seconds: amount,
  tts_characters: amount,
  assistants: amount,
  history: z
    .array(
      z.object({
        date: day,
        text_messages: z.number().int(),
        voice_input_seconds: z.number().int(),
        voice_output_seconds: z.number().int(),
        tts_characters: z.number().int(),
      }),
    )
    .optional()
    .describe("Newest first; a day without use has zeros"),
});

export const exportSchema = z.string().describe("A ZIP archive, streamed; README.txt in it says what is where");
