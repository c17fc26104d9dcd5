import { z } from "zod";
import { email, password } from "./fields.ts";

/** The JSON bodies of what is asked for and proved by mail, under /api/auth. */

const token = z.string().min(1).max(256).describe("As in the mail's link; works once");
export const forgotPasswordBody = z.strictObject({ email });
export const resetPasswordBody = z.strictObject({ token, new_password: password });
export const verifyEmailBody = z.strictObject({ token });
