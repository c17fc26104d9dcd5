import express from "express";
import { jwtVerify } from "jose";
import { createServer, type IncomingMessage } from "node:http";
import { WebSocket, WebSocketServer } from "ws";

/*
 * The floor: what one writes first with Express and `ws`. A connection to the gateway for every client, its token
 * checked, text passed on; no storage, no queue, no second device. Run on Node as a process of its own.
 *
 * UPSTREAM=all: each upstream connection hears the events of everybody, as the gateway does by itself, and picks its own.
 * UPSTREAM=scoped: it has found `session-scoped-events` in the gateway's documentation and hears only its own.
 */

interface GatewayFrame {
  type: string;
  event?: string;
  ok?: boolean;
  payload?: { sessionKey?: string; state?: string; deltaText?: string; message?: { content: { text: string }[] } };
}

const secret = new TextEncoder().encode(process.env["JWT_SECRET"]);
const scoped = process.env["UPSTREAM"] === "scoped";
const app = express();
app.get("/readyz", (_request, response) => void response.json({ ready: true }));
const server = createServer(app);
const sockets = new WebSocketServer({ server, path: "/ws/chat", handleProtocols: () => "reef.v1" });

sockets.on("connection", (client, request) => {
  open(client, request).catch(() => client.close(1008, "unauthorized"));
});

async function open(client: WebSocket, request: IncomingMessage): Promise<void> {
  const offered = String(request.headers["sec-websocket-protocol"]).split(",");
  const token = offered.map((part) => part.trim()).find((part) => part.startsWith("bearer."));
  await jwtVerify(token?.slice("bearer.".length) ?? "", secret, { algorithms: ["HS256"] });
  const agentId = new URL(String(request.url), "http://localhost").searchParams.get("agent_id");
  openUpstream(client, `agent:${agentId}:app`);
}

function openUpstream(client: WebSocket, sessionKey: string): void {
  const upstream = new WebSocket(String(process.env["GATEWAY_URL"]));
  let requests = 0;
  const call = (method: string, params: object) => {
    requests += 1;
    upstream.send(JSON.stringify({ type: "req", id: String(requests), method, params }));
  };
  upstream.on("message", (data: Buffer) => {
    const frame = JSON.parse(data.toString()) as GatewayFrame;
    if (frame.event === "connect.challenge") call("connect", connectParams());
    else if (frame.type === "res") answered();
    else if (frame.event === "chat" && frame.payload?.sessionKey === sessionKey) relay(client, frame.payload);
  });
  // The first answer is the welcome; with scoped events the second one is the subscription.
  let answers = 0;
  const answered = () => {
    answers += 1;
    if (answers === 1 && scoped) return call("sessions.messages.subscribe", { key: sessionKey });
    if (answers === (scoped ? 2 : 1)) client.send(JSON.stringify({ type: "connected" }));
  };
  client.on("message", (data: Buffer) => {
    const frame = JSON.parse(data.toString()) as { content: string; client_id: string };
    call("chat.send", { sessionKey, message: frame.content, idempotencyKey: frame.client_id });
  });
  client.on("close", () => upstream.close());
  upstream.on("close", () => client.close(1012));
  upstream.on("error", () => client.close(1012));
}

function relay(client: WebSocket, payload: NonNullable<GatewayFrame["payload"]>): void {
  if (payload.state === "delta") client.send(JSON.stringify({ type: "chunk", content: payload.deltaText }));
  else if (payload.state === "final") {
    const content = payload.message?.content[0]?.text ?? "";
    client.send(JSON.stringify({ type: "message", role: "assistant", content }));
  }
}

function connectParams() {
  return {
    minProtocol: 4,
    maxProtocol: 4,
    client: { id: "gateway-client", version: "0.1.0", platform: "linux", mode: "backend" },
    role: "operator",
    scopes: ["operator.read", "operator.write"],
    caps: scoped ? ["session-scoped-events"] : [],
    auth: { token: process.env["GATEWAY_TOKEN"] },
  };
}

server.listen(Number(process.env["PORT"]), "127.0.0.1");
