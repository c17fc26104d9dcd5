import type { ServerWebSocket } from "bun";

/*
 * The ceiling: the least that a relay can do. One upstream connection, text passed on to the one client of its session;
 * no accounts, no storage, no queue, no second device, nothing survives anything. Run as a process of its own.
 */

interface GatewayFrame {
  type: string;
  event?: string;
  payload?: {
    sessionKey?: string;
    state?: string;
    deltaText?: string;
    message?: { content: { text: string }[] };
  };
}
interface ClientFrame {
  type: string;
  content: string;
  client_id: string;
}
type Client = ServerWebSocket<{ sessionKey: string }>;

const clients = new Map<string, Client>();
const upstream = new WebSocket(String(process.env["GATEWAY_URL"]));
let requests = 0;
let ready = false;

function call(method: string, params: Record<string, unknown>): void {
  upstream.send(JSON.stringify({ type: "req", id: String(++requests), method, params }));
}

upstream.onmessage = (message) => {
  const frame = JSON.parse(String(message.data)) as GatewayFrame;
  if (frame.event === "connect.challenge") {
    const client = { id: "gateway-client", version: "0.1.0", platform: "linux", mode: "backend" };
    const auth = { token: process.env["GATEWAY_TOKEN"] };
    const scopes = ["operator.read", "operator.write"];
    call("connect", { minProtocol: 4, maxProtocol: 4, client, role: "operator", scopes, caps: [], auth });
  } else if (frame.type === "res") ready = true;
  else if (frame.event === "chat") relay(frame.payload ?? {});
};

function relay(payload: NonNullable<GatewayFrame["payload"]>): void {
  const client = clients.get(payload.sessionKey ?? "");
  if (payload.state === "delta") client?.send(JSON.stringify({ type: "chunk", content: payload.deltaText }));
  else if (payload.state === "final") {
    const content = payload.message?.content[0]?.text ?? "";
    client?.send(JSON.stringify({ type: "message", role: "assistant", content }));
  }
}

Bun.serve<{ sessionKey: string }>({
  hostname: "127.0.0.1",
  port: Number(process.env["PORT"]),
  fetch(request, server) {
    const url = new URL(request.url);
    if (url.pathname === "/readyz") return new Response(null, { status: ready ? 200 : 503 });
    const sessionKey = `agent:${url.searchParams.get("agent_id")}:app`;
    const headers = { "Sec-WebSocket-Protocol": "reef.v1" };
    if (server.upgrade(request, { data: { sessionKey }, headers })) return undefined;
    return new Response(null, { status: 404 });
  },
  websocket: {
    open(client) {
      clients.set(client.data.sessionKey, client);
      client.send(JSON.stringify({ type: "connected" }));
    },
    message(client, raw) {
      const frame = JSON.parse(String(raw)) as ClientFrame;
      const { sessionKey } = client.data;
      call("chat.send", { sessionKey, message: frame.content, idempotencyKey: frame.client_id });
    },
    close: (client) => void clients.delete(client.data.sessionKey),
  },
});
