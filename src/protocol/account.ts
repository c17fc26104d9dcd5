import { z } from "zod";
import { withoutNul } from "./fields.ts";

/** The password, or a fresh sign-in with the provider. */
export const deleteAccountBody = z.strictObject({
  password: z.string().min(1).max(256).optional(),
  provider: z.enum(["apple", "google"]).optional(),
  id_token: z.string().min(1).max(8192).optional(),
  nonce: z
    .string()
    .min(1)
    .max(256)
    .refine(...withoutNul)
    .optional(),
});
