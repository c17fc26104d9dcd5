import { connectParams } from "./gatewayConnection.ts";
import { agentsSchema, helloSchema, inboundFrameSchema } from "./gatewayFrames.ts";

/** What one look at a gateway showed. */
export type GatewayLook =
  | { outcome: "answered"; ms: number; version: string; agents: number }
  /** Nobody took the connection, or it was closed without a word. */
  | { outcome: "unreachable" }
  /** It said no: `code` is its own. */
  | { outcome: "refused"; code: string }
  /** It took the connection and said nothing in time. */
  | { outcome: "silent" };

const READ_ONLY = { scopes: ["operator.read"], caps: ["session-scoped-events"] };

/**
 * Asks a gateway one question over a connection of its own, with the token and nothing but read scope, as a client would:
 * handshake, then who is configured. Never rejects.
 */
export function lookAtGateway(gateway: { url: string; token: string }, limitMs: number): Promise<GatewayLook> {
  return new Promise((resolve) => {
    const began = performance.now();
    const socket = new WebSocket(gateway.url);
    let version = "";
    const end = (look: GatewayLook) => {
      clearTimeout(timer);
      resolve(look);
      socket.close();
    };
    const timer = setTimeout(() => end({ outcome: "silent" }), limitMs);
    const ask = (id: string, method: string, params: unknown) =>
      socket.send(JSON.stringify({ type: "req", id, method, params }));
    socket.onmessage = (message) => {
      const frame = parse(String(message.data));
      if (!frame) return;
      if (frame.type === "event") {
        if (frame.event === "connect.challenge")
          ask("1", "connect", connectParams({ ...READ_ONLY, token: gateway.token }));
        return;
      }
      if (!frame.ok) return end({ outcome: "refused", code: frame.error?.code ?? "UNKNOWN" });
      if (frame.id === "1") {
        version = helloSchema.safeParse(frame.payload).data?.server.version ?? "";
        if (version === "") return end({ outcome: "refused", code: "BAD_HELLO" });
        return ask("2", "agents.list", {});
      }
      const agents = agentsSchema.safeParse(frame.payload).data?.agents.length;
      if (agents === undefined) return end({ outcome: "refused", code: "BAD_ANSWER" });
      end({ outcome: "answered", ms: Math.round(performance.now() - began), version, agents });
    };
    socket.onclose = () => end({ outcome: "unreachable" });
    socket.onerror = () => end({ outcome: "unreachable" });
  });
}

/** What the gateway's probe of life says; null: it does not answer. `ready`: it takes chats. */
export async function readGatewayHealth(
  gatewayUrl: string,
  limitMs: number,
): Promise<{ ready: boolean; uptimeMs: number | null } | null> {
  const url = Object.assign(new URL(gatewayUrl), { protocol: gatewayUrl.startsWith("wss") ? "https" : "http" });
  const signal = AbortSignal.timeout(limitMs);
  const get = (path: string) => fetch(new URL(path, url), { signal });
  try {
    const alive = await get("/healthz");
    await alive.body?.cancel();
    if (!alive.ok) return null;
    // It lives; that it is slow to say whether it takes chats does not make it dead.
    const answer = await get("/readyz").catch(() => null);
    const body = ((await answer?.json().catch(() => ({}))) ?? {}) as { uptimeMs?: unknown };
    return { ready: answer?.ok ?? false, uptimeMs: typeof body.uptimeMs === "number" ? body.uptimeMs : null };
  } catch {
    return null;
  }
}

function parse(text: string) {
  try {
    return inboundFrameSchema.safeParse(JSON.parse(text)).data ?? null;
  } catch {
    return null;
  }
}
