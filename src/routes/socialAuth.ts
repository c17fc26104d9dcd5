import type { Deps } from "../deps.ts";
import type { Router } from "../http/env.ts";
import { inRequest } from "../http/middleware.ts";
import { signedInSchema, socialBody } from "../protocol/auth.ts";
import { signInWithProvider } from "../services/socialSignIn.ts";
import { renderSignedIn } from "./auth.ts";

/** `/api/auth/social`: sign-in with Apple or Google. */
export function socialAuthRoutes(router: Router, deps: Deps): void {
  router.route(
    {
      method: "post",
      path: "/api/auth/social",
      access: "public",
      tag: "Authentication",
      summary: "Sign in, or up, with Apple or Google",
      body: socialBody,
      responses: { 200: signedInSchema },
      errors: [
        "invalid_id_token",
        "too_many_attempts",
        "account_suspended",
        "email_unverified",
        "identity_taken",
        "provider_not_configured",
        "provider_unavailable",
      ],
    },
    async (c, { body }) =>
      c.json(
        renderSignedIn(
          await signInWithProvider(inRequest(deps, c), c.get("origin"), {
            provider: body.provider,
            idToken: body.id_token,
            nonce: body.nonce ?? null,
            authorizationCode: body.authorization_code ?? null,
            name: body.name ?? null,
            deviceName: body.device_name ?? null,
            timezone: body.timezone ?? null,
          }),
        ),
      ),
  );
}
