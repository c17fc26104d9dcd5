import { methods } from "./gatewayMethods.ts";
import type { RpcError } from "./gatewayRuns.ts";

export interface ConnectParams {
  minProtocol?: number;
  maxProtocol?: number;
  client?: { id?: string; version?: string; platform?: string; mode?: string };
  role?: string;
  scopes?: string[];
  caps?: string[];
  auth?: { token?: string };
}

export type Refused = { error: RpcError; close: number };

const version = "2026.9.3";
const refuse = (close: number, code: string, message: string, details: Record<string, unknown>): Refused => ({
  error: { code, message, details },
  close,
});

/** Why a `connect` is refused, and with which close code; null when it is welcome. */
export function connectRefusal(
  params: ConnectParams,
  gateway: { token: string; ready: boolean; origin: string | null },
): Refused | null {
  const { minProtocol = 0, maxProtocol = 0, client = {}, auth = {} } = params;
  if (!gateway.ready) {
    const details = { reason: "startup-sidecars" };
    const error = {
      code: "UNAVAILABLE",
      message: "gateway starting; retry shortly",
      retryable: true,
      retryAfterMs: 500,
      details,
    };
    return { error, close: 1013 };
  }
  if (minProtocol > 4 || maxProtocol < 4) {
    const asked = { clientMinProtocol: minProtocol, clientMaxProtocol: maxProtocol };
    const details = { code: "PROTOCOL_MISMATCH", ...asked, expectedProtocol: 4, minimumProbeProtocol: 3 };
    return refuse(1002, "INVALID_REQUEST", "protocol mismatch", details);
  }
  if (gateway.origin !== null) {
    const how = "open the Control UI from the gateway host or allow it in gateway.controlUi.allowedOrigins";
    const details = { code: "CONTROL_UI_ORIGIN_NOT_ALLOWED", reason: "origin not allowed" };
    return refuse(1008, "INVALID_REQUEST", `origin not allowed (${how})`, details);
  }
  if (!auth.token || client.id !== "gateway-client" || client.mode !== "backend") {
    return refuse(1008, "NOT_PAIRED", "device identity required", { code: "DEVICE_IDENTITY_REQUIRED" });
  }
  if (auth.token !== gateway.token) {
    const hints = { canRetryWithDeviceToken: false, recommendedNextStep: "update_auth_credentials" };
    const details = { code: "AUTH_TOKEN_MISMATCH", authReason: "token_mismatch", ...hints };
    return refuse(
      1008,
      "INVALID_REQUEST",
      "unauthorized: gateway token mismatch (provide gateway auth token)",
      details,
    );
  }
  return null;
}

/** The payload of a welcome. */
export function helloOk(about: {
  bootId: string;
  connId: string;
  scopes: string[];
  appliedConfigHash: string;
  tickIntervalMs: number;
  uptimeMs: number;
}): Record<string, unknown> {
  const { bootId, connId, scopes, appliedConfigHash, tickIntervalMs, uptimeMs } = about;
  const events = [
    "connect.challenge",
    "agent",
    "chat",
    "chat.metadata.changed",
    "session.message",
    "config.changed",
    "tick",
    "shutdown",
  ];
  return {
    type: "hello-ok",
    protocol: 4,
    server: { version, buildId: `${version}-release-fake`, bootId, controlUiBuildSource: "bundled", connId },
    features: { methods: Object.keys(methods), events },
    snapshot: {
      suspension: { phase: "accepting" },
      presence: [],
      health: { ok: true, ts: Date.now() },
      uptimeMs,
      appliedConfigHash,
    },
    auth: { role: "operator", scopes },
    policy: { maxPayload: 26214400, maxBufferedBytes: 52428800, tickIntervalMs },
  };
}

/** The plain HTTP routes; null for what may become a WebSocket. */
export function httpAnswer(request: Request, about: { ready: boolean; uptimeMs: number }): Response | null {
  if (request.headers.has("x-forwarded-for")) return new Response("Forbidden", { status: 403 });
  const path = new URL(request.url).pathname;
  if (path === "/healthz") return Response.json({ ok: true, status: "live" });
  if (path !== "/readyz") return null;
  const failing = about.ready ? [] : ["startup-sidecars"];
  return Response.json({ ready: about.ready, failing, uptimeMs: about.uptimeMs }, { status: about.ready ? 200 : 503 });
}
