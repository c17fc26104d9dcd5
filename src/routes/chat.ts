import type { Server, ServerWebSocket, WebSocketHandler } from "bun";
import type { Hono } from "hono";
import { z } from "zod";
import { findAssistantByAgent, type Assistant } from "../db/assistants.ts";
import { findRunningTurn } from "../db/turns.ts";
import { getUsage, type Usage } from "../db/usage.ts";
import type { Deps } from "../deps.ts";
import type { Env } from "../http/env.ts";
import { mayOpenSocket } from "../http/headers.ts";
import { renderOutside, toAppError } from "../http/problem.ts";
import { AppError } from "../lib/errors.ts";
import { CHAT_SUBPROTOCOL, CLOSE, MAX_FRAME_BYTES, type ServerFrame } from "../protocol/chat.ts";
import { MESSAGE_MAX_CHARACTERS } from "../protocol/api.ts";
import { authenticate, type Identity } from "../services/accessTokens.ts";
import { wakeAssistant } from "../services/assistants.ts";
import type { ChatHub } from "../services/chatHub.ts";
import { findResetReason, type Peer } from "../services/chatRooms.ts";
import type { Starter } from "../services/turnEngine.ts";
import {
  createOpenSockets,
  MAX_SOCKETS_PER_USER,
  SILENT_HEARTBEATS,
  type OpenSocket,
  type OpenSockets,
} from "../services/openSockets.ts";
import { handleFrame } from "./chatFrames.ts";

/** What a slow reader may have waiting; above it, it is brought up to date when it has drained. */
const BUFFER_BYTES = 256 * 1024;
/** Frames of one socket that may wait to be worked on; more are refused. */
const MAX_WAITING_FRAMES = 200;
/** Who goes on sending though so many were refused in one go is no client of ours. */
const MAX_REFUSED_FRAMES = 200;
const PATH = "/ws/chat";

/** What an upgraded socket starts with: everything was checked before the upgrade, so `open` has nothing to wait for. */
type Opening =
  | {
      ok: true;
      identity: Identity;
      assistant: Assistant;
      afterSeq: number;
      reset: "too_far_behind" | "ahead" | null;
      connected: Extract<ServerFrame, { type: "connected" }>;
      turn: { id: string; seq: number } | null;
      socket: OpenSocket;
    }
  | { ok: false; code: number; reason: string };
interface SocketData {
  opening: Opening;
  peer: Peer | null;
  /** Frames of one socket are worked on one after the other, in the order they came. */
  work: Promise<void>;
  waiting: number;
  refused: number;
  pingedMs: number;
}

export interface ChatSockets {
  /** Answers an upgrade request; null when the request is none of ours, or no real one. */
  upgrade(request: Request, server: Server<SocketData>): Promise<Response | undefined | null>;
  websocket: WebSocketHandler<SocketData>;
  /** Closes dead, expired and silent sockets; called by a timer. */
  sweep(): void;
  closeAll(reason: string): void;
}

const afterSeqSchema = z.coerce.number().int().min(0).max(Number.MAX_SAFE_INTEGER);

/** What the chat socket's address says to a plain request. */
export function chatRoute(app: Hono<Env>): void {
  app.get(PATH, () => {
    throw new AppError("upgrade_required");
  });
}

/** The chat socket on Bun's own WebSocket server. */
export function createChatSockets(deps: Deps, hub: ChatHub, engine: Starter): ChatSockets {
  const sockets = new Set<ServerWebSocket<SocketData>>();
  const openSockets = createOpenSockets(deps);
  let closing = false;
  return {
    async upgrade(request, server) {
      if (request.headers.get("upgrade")?.toLowerCase() !== "websocket") return null;
      const url = URL.parse(request.url);
      if (url?.pathname !== PATH) return null;
      if (!mayOpenSocket(deps.config, request))
        return renderOutside(new AppError("forbidden", {}, "Pages of this origin may not open a chat here."));
      // A few who come back later, rather than everybody slow.
      if (deps.loopDelay.read().meanMs > deps.config.CHAT_MAX_LOOP_DELAY_MS)
        return renderOutside(new AppError("service_unavailable", { retry_after: 2 + Math.ceil(Math.random() * 5) }));
      const offered = (request.headers.get("sec-websocket-protocol") ?? "").split(",").map((part) => part.trim());
      const token =
        offered.find((part) => part.startsWith("bearer."))?.slice("bearer.".length) ??
        url.searchParams.get("token") ??
        "";
      const opening = await prepare(deps, openSockets, url, token);
      const headers = offered.includes(CHAT_SUBPROTOCOL) ? { "Sec-WebSocket-Protocol": CHAT_SUBPROTOCOL } : {};
      const data = { opening, peer: null, work: Promise.resolve(), waiting: 0, refused: 0, pingedMs: Date.now() };
      if (server.upgrade(request, { data, headers })) return undefined;
      if (opening.ok) openSockets.release(opening.socket);
      return null;
    },
    websocket: {
      maxPayloadLength: MAX_FRAME_BYTES,
      backpressureLimit: 8 * 1024 * 1024,
      idleTimeout: 0,
      sendPings: false,
      open(ws) {
        const { opening } = ws.data;
        if (!opening.ok) return ws.close(opening.code, opening.reason);
        if (closing) return sendAway(ws, "restart");
        // Was Redis away at the claim? Then this is the limit: nothing can come between the count and the join.
        if (hub.countOf(opening.identity.userId) >= MAX_SOCKETS_PER_USER)
          return ws.close(CLOSE.tooManySockets, "too many sockets");
        sockets.add(ws);
        const peer = createPeer(ws, opening, deps.metrics.frames);
        ws.data.peer = peer;
        peer.send(opening.connected);
        const { reset, afterSeq } = opening;
        if (reset) peer.send({ type: "reset", last_seq: afterSeq, reason: reset });
        hub.join(opening.assistant, peer, opening.turn);
      },
      message(ws, raw) {
        const { data } = ws;
        const { peer } = data;
        if (!peer) return;
        peer.lastHeardMs = Date.now();
        deps.metrics.frames.received();
        if (data.waiting >= MAX_WAITING_FRAMES) return refuseFlood(data, peer);
        data.waiting += 1;
        data.work = data.work
          .then(() => handleFrame(deps, { hub, engine }, peer, raw))
          .finally(() => {
            data.waiting -= 1;
            if (data.waiting === 0) data.refused = 0;
          });
      },
      pong(ws) {
        if (ws.data.peer) ws.data.peer.lastHeardMs = Date.now();
      },
      drain(ws) {
        if (ws.data.peer && !ws.data.peer.isSlow()) void hub.catchUp(ws.data.peer);
      },
      close(ws) {
        sockets.delete(ws);
        if (ws.data.opening.ok) openSockets.release(ws.data.opening.socket);
        if (ws.data.peer) hub.leave(ws.data.peer);
      },
    },
    sweep() {
      const now = Date.now();
      const pinged: OpenSocket[] = [];
      for (const ws of sockets) {
        const { peer, opening } = ws.data;
        if (!peer || !opening.ok) continue;
        if (now - peer.lastHeardMs > deps.config.CHAT_PING_MS * SILENT_HEARTBEATS)
          peer.close(CLOSE.noHeartbeat, "no heartbeat");
        else if (now / 1000 > peer.expiresAt) peer.close(CLOSE.policy, "token expired");
        else if (now - ws.data.pingedMs >= deps.config.CHAT_PING_MS) {
          ws.data.pingedMs = now;
          ws.ping();
          pinged.push(opening.socket);
        }
      }
      openSockets.refresh(pinged);
    },
    closeAll(reason) {
      closing = true;
      for (const ws of sockets) sendAway(ws, reason);
    },
  };
}

function sendAway(ws: ServerWebSocket<SocketData>, reason: string): void {
  // Spread out, or every client of this process would come back in the same instant.
  const retryAfterMs = Math.round(250 + Math.random() * 2000);
  ws.send(JSON.stringify({ type: "disconnected", reason, retry_after_ms: retryAfterMs } satisfies ServerFrame));
  ws.close(CLOSE.restart, reason);
}

function refuseFlood(data: SocketData, peer: Peer): void {
  data.refused += 1;
  if (data.refused > MAX_REFUSED_FRAMES) return peer.close(CLOSE.tooManySockets, "too many frames");
  const error = new AppError("too_many_frames", { retry_after: 1 });
  peer.send({ type: "error", code: error.code, message: error.message, ...error.extras });
}

async function prepare(deps: Deps, openSockets: OpenSockets, url: URL, token: string): Promise<Opening> {
  try {
    const identity = await authenticate(deps, token);
    const assistant = await findAssistantByAgent(deps.sql, {
      userId: identity.userId,
      agentId: url.searchParams.get("agent_id") ?? "",
    });
    if (!assistant) return { ok: false, code: CLOSE.policy, reason: "there is no such assistant" };
    await wakeAssistant(deps, identity, assistant.id);
    const usage = await getUsage(deps.sql, identity.userId);
    const after = afterSeqSchema.safeParse(url.searchParams.get("after_seq") ?? undefined);
    const wanted = after.data ?? assistant.lastSeq;
    const reset = findResetReason(wanted, assistant.lastSeq);
    const afterSeq = reset ? assistant.lastSeq : wanted;
    const turn = await findRunningTurn(deps.sql, { userId: identity.userId, assistantId: assistant.id });
    const connected = renderConnected(deps, assistant, usage);
    // Last: who is refused for another reason takes no place.
    const socket = await openSockets.claim(identity.userId, assistant.agentId);
    if (!socket) return { ok: false, code: CLOSE.tooManySockets, reason: "too many sockets" };
    return { ok: true, identity, assistant, afterSeq, reset, turn, connected, socket };
  } catch (error) {
    const known = toAppError(error);
    if (known && known.status < 500) return { ok: false, code: CLOSE.policy, reason: known.message.slice(0, 100) };
    deps.log[known ? "warn" : "error"]({ err: error }, "chat socket could not be opened");
    return { ok: false, code: CLOSE.restart, reason: "not ready; try again" };
  }
}

function renderConnected(deps: Deps, assistant: Assistant, { plan, used, limits, resetAt }: Usage) {
  return {
    type: "connected" as const,
    agentId: assistant.agentId,
    assistant_id: assistant.id,
    last_seq: assistant.lastSeq,
    state: assistant.state,
    plan,
    heartbeat_ms: deps.config.CHAT_PING_MS,
    limits: {
      message_characters: MESSAGE_MAX_CHARACTERS,
      frame_bytes: MAX_FRAME_BYTES,
      text_messages: { used: used.textMessages, limit: limits.textMessages, reset_at: resetAt.toISOString() },
    },
  };
}

function createPeer(
  ws: ServerWebSocket<SocketData>,
  opening: Extract<Opening, { ok: true }>,
  frames: Deps["metrics"]["frames"],
): Peer {
  const { identity, assistant, connected } = opening;
  const isSlow = () => ws.getBufferedAmount() > BUFFER_BYTES;
  let slow = false;
  return {
    id: opening.socket.id,
    userId: identity.userId,
    sessionId: identity.sessionId,
    assistantId: assistant.id,
    agentId: assistant.agentId,
    expiresAt: identity.expiresAt,
    lastHeardMs: Date.now(),
    seq: opening.afterSeq,
    turn: null,
    state: assistant.state,
    plan: connected.plan,
    isSlow,
    send(frame) {
      ws.send(typeof frame === "string" ? frame : JSON.stringify(frame));
      frames.sent(typeof frame === "string" ? "rendered" : frame.type);
      const wasSlow = slow;
      slow = isSlow();
      if (slow && !wasSlow) frames.slowed();
      return slow ? "slow" : "ok";
    },
    close: (code, reason) => ws.close(code, reason),
  };
}
