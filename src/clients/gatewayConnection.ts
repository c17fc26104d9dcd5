import type { z } from "zod";
import type { Log } from "../lib/log.ts";
import { backoffDelay } from "../lib/retry.ts";
import { helloSchema, inboundFrameSchema, isRepeatedText } from "./gatewayFrames.ts";

const PROTOCOL = 4;
const HANDSHAKE_MS = 10_000;
/** A gateway answers a WebSocket ping by itself; one that is this long silent is not there, whatever TCP says. */
const PING_MS = 5_000;
const SILENT_MS = 20_000;
const RECONNECT_BASE_MS = 200;
const RECONNECT_CAP_MS = 1_500;

/**
 * Why a call has no answer. `refused`: the gateway said no. `unsent`: there was no connection, it was never sent.
 * `unknown`: sent, but the answer is lost; only calls that may be repeated are repeated, by their caller.
 */
export class GatewayError extends Error {
  readonly kind: "refused" | "unsent" | "unknown";
  readonly code: string;
  constructor(kind: GatewayError["kind"], code: string, message: string) {
    super(message);
    this.name = "GatewayError";
    this.kind = kind;
    this.code = code;
  }
}

export interface GatewayHello {
  version: string;
  bootId: string;
}

export interface ConnectionOptions {
  name: string;
  url: string;
  token: string;
  scopes: string[];
  /** `session-scoped-events`: no events of sessions that were not subscribed to. */
  caps: string[];
  log: Log;
  onHello: (hello: GatewayHello) => void;
  onLost: () => void;
  onEvent: (event: string, payload: unknown) => void;
}

interface Pending {
  resolve: (payload: unknown) => void;
  reject: (error: Error) => void;
  timer: ReturnType<typeof setTimeout>;
}

/**
 * One WebSocket to a gateway, opened again for ever with jitter.
 * States: connecting → challenged → ready → lost → (wait) → connecting; `close()` ends it from any of them.
 */
export function openGatewayConnection(options: ConnectionOptions) {
  const { log, name } = options;
  const pending = new Map<string, Pending>();
  let socket: WebSocket | undefined;
  let ready = false;
  let closed = false;
  let attempt = 0;
  let nextId = 1;
  let retryTimer: ReturnType<typeof setTimeout> | undefined;
  let silenceTimer: ReturnType<typeof setTimeout> | undefined;
  let pinger: ReturnType<typeof setInterval> | undefined;
  let silenceMs = HANDSHAKE_MS;

  const lose = (lost: WebSocket, why: string) => {
    if (socket !== lost) return;
    socket = undefined;
    clearTimeout(silenceTimer);
    clearInterval(pinger);
    lost.close();
    failPending();
    if (ready) {
      ready = false;
      if (!closed) log.warn({ connection: name, why }, "gateway connection lost");
      options.onLost();
    }
    if (!closed) retryTimer = setTimeout(connect, backoffDelay(attempt++, RECONNECT_BASE_MS, RECONNECT_CAP_MS));
  };
  const failPending = () => {
    for (const call of pending.values()) {
      clearTimeout(call.timer);
      call.reject(new GatewayError("unknown", "CONNECTION_LOST", "the gateway connection was lost before the answer"));
    }
    pending.clear();
  };
  // A half-open connection looks healthy for ever; the gateway's own ticks come too rarely (30 s) to tell it soon.
  const listenForSilence = (ws: WebSocket) => {
    clearTimeout(silenceTimer);
    silenceTimer = setTimeout(() => lose(ws, "silent"), silenceMs);
  };
  const connect = () => {
    silenceMs = HANDSHAKE_MS;
    const ws = new WebSocket(options.url);
    socket = ws;
    listenForSilence(ws);
    ws.onmessage = (message) => {
      if (socket !== ws) return;
      listenForSilence(ws);
      receive(ws, message.data);
    };
    ws.addEventListener("pong", () => socket === ws && listenForSilence(ws));
    ws.onclose = (event) => lose(ws, `closed ${event.code}`);
    ws.onerror = () => lose(ws, "error");
  };
  const receive = (ws: WebSocket, data: unknown) => {
    const text = String(data);
    if (isRepeatedText(text)) return;
    const frame = parseFrame(text);
    if (!frame) return log.warn({ connection: name }, "gateway frame not understood");
    if (frame.type === "res") return settle(frame);
    if (frame.event === "connect.challenge") return void handshake(ws);
    options.onEvent(frame.event, frame.payload);
  };
  const settle = (frame: Extract<z.infer<typeof inboundFrameSchema>, { type: "res" }>) => {
    const call = pending.get(frame.id);
    if (!call) return;
    pending.delete(frame.id);
    clearTimeout(call.timer);
    if (frame.ok) call.resolve(frame.payload ?? {});
    else call.reject(new GatewayError("refused", frame.error?.code ?? "UNKNOWN", frame.error?.message ?? "refused"));
  };
  const handshake = async (ws: WebSocket) => {
    try {
      const payload = await send(ws, "connect", connectParams(options), HANDSHAKE_MS);
      const hello = helloSchema.parse(payload);
      if (socket !== ws) return;
      silenceMs = SILENT_MS;
      pinger = setInterval(() => ws.ping(), PING_MS);
      ready = true;
      attempt = 0;
      options.onHello({ version: hello.server.version, bootId: hello.server.bootId ?? "" });
    } catch (error) {
      const code = error instanceof GatewayError ? error.code : "BAD_HELLO";
      if (attempt % 20 === 0) log.warn({ connection: name, code }, "gateway did not let us in; will try again");
      lose(ws, code);
    }
  };
  const send = (ws: WebSocket, method: string, params: unknown, timeoutMs: number) =>
    new Promise<unknown>((resolve, reject) => {
      const id = String(nextId++);
      const timer = setTimeout(() => {
        pending.delete(id);
        reject(new GatewayError("unknown", "TIMEOUT", `${method} had no answer within ${timeoutMs} ms`));
      }, timeoutMs);
      pending.set(id, { resolve, reject, timer });
      ws.send(JSON.stringify({ type: "req", id, method, params }));
    });

  connect();
  return {
    isReady: () => ready,
    /** Calls a method; the answer is checked by `schema`. Throws GatewayError. */
    async call<T extends z.ZodType>(
      method: string,
      params: unknown,
      schema: T,
      timeoutMs = 15_000,
    ): Promise<z.output<T>> {
      if (!ready || !socket) throw new GatewayError("unsent", "NOT_CONNECTED", "the gateway is not connected");
      return schema.parse(await send(socket, method, params, timeoutMs));
    },
    close() {
      closed = true;
      clearTimeout(retryTimer);
      if (socket) lose(socket, "closing");
    },
  };
}

/** What the gateway is told of who connects. */
export function connectParams(options: Pick<ConnectionOptions, "scopes" | "caps" | "token">) {
  return {
    minProtocol: PROTOCOL,
    maxProtocol: PROTOCOL,
    client: { id: "gateway-client", version: "0.1.0", platform: "linux", mode: "backend" },
    role: "operator",
    scopes: options.scopes,
    caps: options.caps,
    auth: { token: options.token },
  };
}

function parseFrame(text: string): z.infer<typeof inboundFrameSchema> | null {
  try {
    return inboundFrameSchema.safeParse(JSON.parse(text)).data ?? null;
  } catch {
    return null;
  }
}
