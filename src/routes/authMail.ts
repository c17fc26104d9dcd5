import type { Deps } from "../deps.ts";
import type { Router } from "../http/env.ts";
import { acceptedSchema } from "../protocol/api.ts";
import { forgotPasswordBody, resetPasswordBody, verifyEmailBody } from "../protocol/authMail.ts";
import { resendVerification, verifyEmail } from "../services/emailVerification.ts";
import { requestPasswordReset, resetPassword } from "../services/passwordReset.ts";

const tag = "Authentication";

/** What is asked for and proved by mail, under `/api/auth`: a new password, a verified address. */
export function authMailRoutes(router: Router, deps: Deps): void {
  router.route(
    {
      method: "post",
      path: "/api/auth/forgot-password",
      access: "public",
      tag,
      summary: "Ask for a mail whose link sets a new password; the answer does not tell whether there is an account",
      body: forgotPasswordBody,
      responses: { 202: acceptedSchema },
      errors: ["too_many_attempts"],
    },
    async (c, { body }) => {
      await requestPasswordReset(deps, c.get("origin"), body);
      return c.json({ message: "If there is an account with this address, a mail is on its way." }, 202);
    },
  );
  router.route(
    {
      method: "post",
      path: "/api/auth/reset-password",
      access: "public",
      tag,
      summary: "Set a new password with the token of that mail; every session ends",
      body: resetPasswordBody,
      responses: { 204: null },
      errors: ["token_invalid", "weak_password"],
    },
    async (c, { body }) => {
      await resetPassword(deps, c.get("origin"), { token: body.token, newPassword: body.new_password });
      return c.body(null, 204);
    },
  );
  router.route(
    {
      method: "post",
      path: "/api/auth/verify-email",
      access: "public",
      tag,
      summary: "Verify the address with the token of a mail",
      body: verifyEmailBody,
      responses: { 204: null },
      errors: ["token_invalid"],
    },
    async (c, { body }) => {
      await verifyEmail(deps, c.get("origin"), body);
      return c.body(null, 204);
    },
  );
  router.route(
    {
      method: "post",
      path: "/api/auth/verify-email/resend",
      access: "user",
      tag,
      summary: "Ask for another mail to verify the address; nothing is sent where it is verified",
      responses: { 202: acceptedSchema },
      errors: [],
    },
    async (c) => {
      await resendVerification(deps, c.get("actor"));
      return c.json({ message: "If the address is not verified yet, a mail is on its way." }, 202);
    },
  );
}
