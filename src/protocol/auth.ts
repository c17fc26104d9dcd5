import { z } from "zod";
import { email, name, password, timezone } from "./fields.ts";
import { userSchema } from "./user.ts";

/** The JSON bodies of /api/auth. */

export const signupBody = z.strictObject({
  email,
  password,
  name: name.optional(),
  timezone: timezone.optional(),
  device_name: name.optional(),
});
export const loginBody = z.strictObject({ email, password: z.string().min(1).max(256), device_name: name.optional() });
export const socialBody = z.strictObject({
  provider: z.enum(["apple", "google"]),
  id_token: z.string().min(1).max(8192).describe("The identity token that the provider gave the app"),
  nonce: z.string().min(1).max(256).optional().describe("The raw nonce, where the app asked for the token with one"),
  authorization_code: z.string().min(1).max(2048).optional().describe("Apple only; makes its token revocable"),
  name: name.optional().describe("Apple tells the app, the first time only"),
  device_name: name.optional(),
  timezone: timezone.optional(),
});
export const refreshBody = z.strictObject({ refresh_token: z.string().min(1).max(512) });
export const logoutBody = z.strictObject({ all: z.boolean().optional().describe("true: every device of the user") });

const tokens = {
  access_token: z.string().describe("JWT, 15 minutes"),
  refresh_token: z.string().describe("Opaque, 30 days, another one at each use"),
  expires_in: z.number().int().describe("Seconds the access token lives"),
};
export const tokensSchema = z.object(tokens);
export const signedInSchema = z.object({ user: userSchema, ...tokens });
