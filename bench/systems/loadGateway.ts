import { serve, upgradeWebSocket } from "@hono/node-server";
import { Hono } from "hono";
import { createHash, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { WebSocketServer, type WebSocket } from "ws";
import { closeFrame, type OpenFrame } from "./loadFrames.ts";
import { createRuns } from "./loadRuns.ts";

/*
 * A gateway for load, on Node as the real one is: the protocol as far as Reef speaks it, and a model that does what the
 * message says. Events go to every connection that may read, or, with `session-scoped-events`, to subscribers, as in
 * openclaw 2026.9.3. Run by the benches as a process of its own.
 */

interface Peer {
  socket: WebSocket;
  ready: boolean;
  scoped: boolean;
  keys: Set<string>;
  seq: number;
}
interface Params {
  sessionKey?: string;
  key?: string;
  message?: string;
  idempotencyKey?: string;
  runId?: string;
  limit?: number;
  auth?: { token?: string };
  caps?: string[];
}

const dir = String(process.env["GATEWAY_DIR"]);
const token = String(process.env["GATEWAY_TOKEN"]);
const bootId = randomUUID();
const peers = new Set<Peer>();
const subscribers = new Map<string, Set<Peer>>();

function* recipients(sessionKey: string | null): Iterable<Peer> {
  for (const peer of peers) if (peer.ready && !peer.scoped) yield peer;
  if (sessionKey !== null) yield* subscribers.get(sessionKey) ?? [];
}

const runs = createRuns({
  emit(sessionKey: string, frames: OpenFrame[]) {
    for (const peer of recipients(sessionKey))
      for (const frame of frames) peer.socket.send(closeFrame(frame, ++peer.seq));
  },
  /** The most that one recipient has waiting: the model waits, or memory would grow without an end. */
  waiting(sessionKey: string) {
    let most = 0;
    for (const peer of recipients(sessionKey)) most = Math.max(most, peer.socket.bufferedAmount);
    return most;
  },
});

function readConfig(): { ids: string[]; hash: string } {
  let text = "{}";
  try {
    text = readFileSync(join(dir, "openclaw.json"), "utf8");
  } catch {
    // Nobody has written it yet.
  }
  const { agents } = JSON.parse(text) as { agents?: { entries?: Record<string, unknown> } };
  return { ids: Object.keys(agents?.entries ?? {}), hash: createHash("sha256").update(text).digest("hex") };
}

function answer(peer: Peer, method: string, params: Params): string {
  const key = params.sessionKey ?? params.key ?? "";
  switch (method) {
    case "connect":
      return connect(peer, params);
    case "chat.send":
      return runs.send(key, params.message ?? "", params.idempotencyKey ?? "");
    case "chat.history":
      return runs.history(key, params.limit ?? 200);
    case "chat.abort":
      return runs.abort(key, params.runId ?? "");
    case "agents.list":
      return JSON.stringify({ agents: readConfig().ids.map((id) => ({ id })) });
    case "config.get": {
      const { hash } = readConfig();
      return JSON.stringify({ hash, valid: true, issues: [], configRevisionHash: hash, appliedConfigHash: hash });
    }
    case "sessions.messages.subscribe":
      peer.keys.add(key);
      subscribers.set(key, (subscribers.get(key) ?? new Set()).add(peer));
      return `{"subscribed":true,"key":"${key}"}`;
    default:
      return `{"ok":true}`;
  }
}

function connect(peer: Peer, params: Params): string {
  if (params.auth?.token !== token) throw new Error("gateway token mismatch");
  peer.ready = true;
  peer.scoped = params.caps?.includes("session-scoped-events") ?? false;
  const policy = { maxPayload: 26214400, maxBufferedBytes: 52428800, tickIntervalMs: 30_000 };
  return JSON.stringify({ type: "hello-ok", protocol: 4, server: { version: "load", bootId }, policy });
}

function receive(peer: Peer, text: string): void {
  const { id, method, params = {} } = JSON.parse(text) as { id: string; method: string; params?: Params };
  try {
    peer.socket.send(`{"type":"res","id":"${id}","ok":true,"payload":${answer(peer, method, params)}}`);
  } catch (error) {
    const refused = { code: "INVALID_REQUEST", message: String(error) };
    peer.socket.send(JSON.stringify({ type: "res", id, ok: false, error: refused }));
  }
}

function open(socket: WebSocket): Peer {
  const peer = { socket, ready: false, scoped: false, keys: new Set<string>(), seq: 0 };
  peers.add(peer);
  const payload = { nonce: randomUUID(), ts: Date.now() };
  socket.send(JSON.stringify({ type: "event", event: "connect.challenge", payload }));
  return peer;
}

function close(peer: Peer): void {
  peers.delete(peer);
  for (const key of peer.keys) subscribers.get(key)?.delete(peer);
}

const app = new Hono();
app.get("/readyz", (c) => c.json({ ready: true }));
app.get(
  "/",
  upgradeWebSocket(() => {
    let peer: Peer | null = null;
    return {
      onOpen: (_, ws) => void (peer = open(ws.raw as WebSocket)),
      onMessage: (event) => peer && receive(peer, event.data as string),
      onClose: () => peer && close(peer),
    };
  }),
);
setInterval(() => {
  const tick = `{"type":"event","event":"tick","payload":{"ts":${Date.now()}}`;
  for (const peer of peers) if (peer.ready) peer.socket.send(closeFrame(tick, ++peer.seq));
}, 30_000);
// The adapter's type of it is stricter about `undefined` than the class itself.
const server = new WebSocketServer({ noServer: true, maxPayload: 26_214_400 }) as never;
serve({
  fetch: app.fetch,
  hostname: "127.0.0.1",
  port: Number(process.env["PORT"]),
  websocket: { server },
});
