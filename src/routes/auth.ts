import type { Context } from "hono";
import type { Env, Router } from "../http/env.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { acceptedSchema } from "../protocol/api.ts";
import { loginBody, logoutBody, refreshBody, signedInSchema, signupBody, tokensSchema } from "../protocol/auth.ts";
import { logIn, signUp, type SignedIn } from "../services/accounts.ts";
import { endSession, refreshSession } from "../services/sessions.ts";
import { renderUser } from "../services/userView.ts";

const tag = "Authentication";

/** `/api/auth`: sign-up, login, refresh, logout. */
export function authRoutes(router: Router, deps: Deps): void {
  router.route(
    {
      method: "post",
      path: "/api/auth/signup",
      access: "public",
      tag,
      summary: "Create an account and sign in",
      body: signupBody,
      responses: { 201: signedInSchema, 202: acceptedSchema },
      errors: ["email_taken", "weak_password", "too_many_attempts"],
    },
    async (c, { body }) => {
      const signedIn = await signUp(deps, c.get("origin"), {
        email: body.email,
        password: body.password,
        name: body.name ?? null,
        timezone: body.timezone ?? "UTC",
        deviceName: body.device_name ?? null,
      });
      return signedIn ? c.json(renderSignedIn(signedIn), 201) : c.json({ message: "Check your mail to go on." }, 202);
    },
  );
  router.route(
    {
      method: "post",
      path: "/api/auth/login",
      access: "public",
      tag,
      summary: "Sign in",
      body: loginBody,
      responses: { 200: signedInSchema },
      errors: ["invalid_credentials", "too_many_attempts", "account_suspended"],
    },
    async (c, { body }) => {
      const input = { email: body.email, password: body.password, deviceName: body.device_name ?? null };
      const signedIn = await logIn(deps, c.get("origin"), input).catch((error: unknown) => {
        logRefusal(c, error);
        throw error;
      });
      return c.json(renderSignedIn(signedIn));
    },
  );
  router.route(
    {
      method: "post",
      path: "/api/auth/refresh",
      access: "public",
      tag,
      summary: "Exchange a refresh token for new tokens",
      body: refreshBody,
      responses: { 200: tokensSchema },
      errors: ["invalid_refresh_token", "session_revoked", "account_suspended", "too_many_attempts"],
    },
    async (c, { body }) => c.json(await refreshSession(deps, c.get("origin"), body.refresh_token)),
  );
  router.route(
    {
      method: "post",
      path: "/api/auth/logout",
      access: "user",
      tag,
      summary: "End this session, or all",
      body: logoutBody,
      responses: { 204: null },
      errors: [],
    },
    async (c, { body }) => {
      await endSession(deps, c.get("actor"), c.get("origin"), { all: body.all ?? false });
      return c.body(null, 204);
    },
  );
}

/** A fresh session as the API shows it. */
export function renderSignedIn({ user, ...tokens }: SignedIn) {
  return { user: renderUser(user), ...tokens };
}

/** One line with the address, and nothing of the account: fail2ban bans by it (deploy/fail2ban/reef-signin.conf). */
function logRefusal(c: Context<Env>, error: unknown): void {
  if (!(error instanceof AppError) || !["invalid_credentials", "too_many_attempts"].includes(error.code)) return;
  c.get("log").warn({ ip: c.get("origin").ip, code: error.code }, "sign-in refused");
}
