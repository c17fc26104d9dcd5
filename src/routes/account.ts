import type { Deps } from "../deps.ts";
import type { Router } from "../http/env.ts";
import { inRequest } from "../http/middleware.ts";
import { deleteAccountBody } from "../protocol/account.ts";
import { acceptedSchema } from "../protocol/api.ts";
import { leave } from "../services/leaving.ts";

/** `DELETE /api/user/account`: the person leaves for good. */
export function accountRoutes(router: Router, deps: Deps): void {
  router.route(
    {
      method: "delete",
      path: "/api/user/account",
      access: "user",
      tag: "User",
      summary: "Delete the account with everything in it; signed out everywhere at once",
      body: deleteAccountBody,
      responses: { 202: acceptedSchema },
      errors: [
        "password_required",
        "invalid_credentials",
        "invalid_id_token",
        "provider_not_configured",
        "provider_unavailable",
        "too_many_attempts",
      ],
    },
    async (c, { body }) => {
      const { password, provider, id_token: idToken, nonce } = body;
      await leave(inRequest(deps, c), c.get("actor"), c.get("origin"), {
        password: password ?? null,
        identity: provider && idToken ? { provider, idToken, nonce: nonce ?? null } : null,
      });
      return c.json({ message: "Your account is being deleted. You get a mail when everything is gone." }, 202);
    },
  );
}
