import type { Server, ServerWebSocket, WebSocketHandler } from "bun";
import type { Hono } from "hono";
import type { Deps } from "../deps.ts";
import type { Env } from "../http/env.ts";
import { mayOpenSocket } from "../http/headers.ts";
import { renderOutside } from "../http/problem.ts";
import { AppError } from "../lib/errors.ts";
import { InFlight } from "../lib/inFlight.ts";
import { CHAT_SUBPROTOCOL, CLOSE, MAX_SOUND_BYTES, type ServerFrame } from "../protocol/chat.ts";
import type { ChatHub } from "../services/chatHub.ts";
import type { Peer } from "../services/chatRooms.ts";
import type { Starter } from "../services/turnEngine.ts";
import {
  createOpenSockets,
  MAX_SOCKETS_PER_USER,
  SILENT_HEARTBEATS,
  type OpenSocket,
} from "../services/openSockets.ts";
import { Speaker } from "../services/speaker.ts";
import { readArrival, type Arrival } from "./chatArrivals.ts";
import { handleFrame, refuse, type Chat } from "./chatFrames.ts";
import { prepare, type Opening } from "./chatOpening.ts";
import { beginVoice } from "./chatVoice.ts";
import { VoiceSlot } from "./voiceSlot.ts";

/** What a slow reader may have waiting; above it, it is brought up to date when it has drained. */
const BUFFER_BYTES = 256 * 1024;
/** Frames of one socket that may wait to be worked on; more are refused. */
const MAX_WAITING_FRAMES = 200;
/** Who goes on sending though so many were refused in one go is no client of ours. */
const MAX_REFUSED_FRAMES = 200;
const PATH = "/ws/chat";

interface SocketData {
  opening: Opening;
  peer: Peer | null;
  slot: VoiceSlot;
  /** Text may be missing on the other side: its buffer was full. */
  behind: boolean;
  speaker: Speaker | null;
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
  /** Waits for what was said on sockets that are closed, at most `graceMs`; what is left then is given up. */
  stop(graceMs: number): Promise<void>;
}

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
  const inFlight = new InFlight(deps.log);
  const chat = { hub, engine };
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
      const data = {
        opening,
        peer: null,
        slot: new VoiceSlot(deps.soundMemory, opening.ok ? opening.identity.userId : "", deps.clock),
        behind: false,
        speaker: null,
        work: Promise.resolve(),
        waiting: 0,
        refused: 0,
        pingedMs: Date.now(),
      };
      if (server.upgrade(request, { data, headers })) return undefined;
      if (opening.ok) openSockets.release(opening.socket);
      return null;
    },
    websocket: {
      maxPayloadLength: MAX_SOUND_BYTES,
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
        ws.data.speaker = new Speaker(deps, inFlight, {
          userId: peer.userId,
          send: (frame) => peer.send(frame),
          isSlow: () => ws.data.behind || peer.isSlow(),
        });
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
        const arrival = readArrival(data.slot, raw);
        if (arrival === "too_big") return peer.close(CLOSE.tooBig, "frame too large");
        if (!arrival) return;
        silence(data, arrival);
        data.waiting += 1;
        data.work = data.work
          .then(() => workOn(deps, chat, inFlight, data, arrival))
          .finally(() => {
            data.waiting -= 1;
            if (data.waiting === 0) data.refused = 0;
          });
      },
      pong(ws) {
        if (ws.data.peer) ws.data.peer.lastHeardMs = Date.now();
      },
      drain(ws) {
        if (ws.data.peer && !ws.data.peer.isSlow()) void catchUp(hub, ws.data.peer, ws.data);
      },
      close(ws) {
        sockets.delete(ws);
        if (ws.data.opening.ok) openSockets.release(ws.data.opening.socket);
        ws.data.speaker?.close();
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
    stop: (graceMs) => inFlight.stop(graceMs),
  };
}

/** What is missing first, then sound. */
async function catchUp(hub: ChatHub, peer: Peer, data: SocketData): Promise<void> {
  await hub.catchUp(peer);
  if (peer.isSlow()) return;
  data.behind = false;
  data.speaker?.drained();
}

/** A stop is heard at once, whatever else waits; one of everything also where no turn has come of a voice yet. */
function silence({ speaker, slot }: SocketData, arrival: Arrival): void {
  if (arrival.kind !== "frame" || arrival.frame.type !== "stop") return;
  const { turn_id: turnId = null } = arrival.frame;
  speaker?.stop(turnId);
  if (turnId === null) slot.stop();
}

async function workOn(
  deps: Deps,
  chat: Chat,
  inFlight: InFlight,
  { peer, slot, speaker }: SocketData,
  arrival: Arrival,
): Promise<void> {
  if (!peer || !speaker) return;
  if (arrival.kind === "frame") return handleFrame(deps, chat, peer, arrival.frame);
  if (arrival.kind === "voice") return beginVoice(deps, chat, inFlight, { peer, slot, speaker }, arrival.voice);
  refuse(deps, peer, { type: "refused", client_id: arrival.clientId }, arrival.error);
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
      if (typeof frame !== "string") ws.data.speaker?.heard(frame);
      const wasSlow = slow;
      slow = isSlow();
      if (slow && !wasSlow) frames.slowed();
      if (slow) ws.data.behind = true;
      return slow ? "slow" : "ok";
    },
    close: (code, reason) => ws.close(code, reason),
  };
}
