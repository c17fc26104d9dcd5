import type { ServerFrame } from "../../src/protocol/chat.ts";

type Frame<T extends ServerFrame["type"]> = Extract<ServerFrame, { type: T }>;
type Message = Frame<"message">;

/** What a device keeps on its disk. A message is in the outbox from the tap on "send" until it is acknowledged. */
export interface Stored {
  messages: Message[];
  outbox: { clientId: string; content: string }[];
}

interface Options {
  /** Where the chat socket is, e.g. `ws://host/ws/chat`; after a failure the next one is tried. */
  servers: string[];
  token: string;
  agentId: string;
  stored?: Stored;
  /** What a `wss:` server's certificate is checked against, where it is none of the system's. */
  ca?: string;
  /** For the jitter of reconnects. */
  random?: () => number;
}

const CONNECT_MS = 5_000;
const ACK_MS = 5_000;
const WAKE_MS = 2_000;
const RETRY_BASE_MS = 200;
const RETRY_CAP_MS = 3_000;
/** A server that was silent for so many heartbeats is gone, whatever the connection looks like. */
const SILENT_HEARTBEATS = 2.4;
/** Errors that say "not now": the message stays in the outbox. Every other error with our client_id is an answer. */
const TRY_AGAIN = new Set(["service_unavailable", "internal_error", "too_many_frames"]);
const CLOSED_FOR_GOOD = 1008;

/**
 * A chat client that does what a good client does, in one piece: the reference for who writes an app.
 * 1. What is typed goes into the outbox first, under a client_id of its own, and leaves it when it is acknowledged.
 * 2. Each connection asks for what came after the last message it has, and sends the outbox again, in order.
 * 3. It asks (ping) whether a silent server lives, and gives up a connection that says nothing.
 * 4. A stored message is the truth; chunks are only shown until it comes.
 * States: connecting → connected → waiting (backoff) → connecting; `close()` and close code 1008 end it.
 */
export class GoodClient {
  readonly messages: Message[];
  readonly outbox: Stored["outbox"];
  /** The answer that is being written, as shown. */
  answer: { turnId: string; text: string } | null = null;
  connected = false;
  /** What the server did against the protocol; empty, or there is a bug. */
  readonly faults: string[] = [];
  /** The pauses that servers asked for when they said goodbye. */
  readonly pausesMs: number[] = [];
  /** Refusals of our messages, for the person to see. */
  readonly refused: Frame<"error">[] = [];
  private socket: WebSocket | null = null;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private heartbeat: ReturnType<typeof setInterval> | undefined;
  private heartbeatMs = 0;
  private heardAt = 0;
  private attempt = 0;
  /** Set by a server that says goodbye: when to come back. */
  private pauseMs: number | null = null;
  private server = 0;
  private closed = false;
  /** Per connection: how far each answer was shown, and which answers are over. */
  private shown = new Map<string, number>();
  private over = new Set<string>();
  private readonly ackTimers = new Map<string, ReturnType<typeof setTimeout>>();

  constructor(private readonly options: Options) {
    this.messages = [...(options.stored?.messages ?? [])];
    this.outbox = [...(options.stored?.outbox ?? [])];
    this.connect();
  }

  /** Says something; it is safe from here on, connected or not. */
  send(content: string): void {
    const entry = { clientId: crypto.randomUUID(), content };
    this.outbox.push(entry);
    if (this.connected) this.transmit(entry);
  }

  /** What would be on the disk now. */
  store(): Stored {
    return structuredClone({ messages: this.messages, outbox: this.outbox });
  }

  /** The system puts the app to sleep: no timer runs, the connection is left to itself. */
  suspend(): void {
    this.stopTimers();
  }

  /** Awake again: a connection that does not answer at once is given up. */
  resume(): void {
    if (this.closed) return;
    const { socket } = this;
    if (!socket || !this.connected) return this.retry(0);
    const sleptUntil = Date.now();
    this.write({ type: "ping" });
    this.timer = setTimeout(() => {
      if (this.heardAt < sleptUntil) this.lose(socket, "silent after sleep");
      else this.beat(socket);
    }, WAKE_MS);
    for (const entry of this.outbox) this.transmit(entry);
  }

  close(): void {
    this.closed = true;
    this.stopTimers();
    this.socket?.close();
    this.socket = null;
    this.connected = false;
  }

  private get lastSeq(): number {
    return this.messages.at(-1)?.seq ?? 0;
  }

  private connect(): void {
    const { servers, token, agentId, ca } = this.options;
    const address = `${servers[this.server % servers.length]}?agent_id=${agentId}&after_seq=${this.lastSeq}`;
    const protocols = ["reef.v1", `bearer.${token}`];
    const socket = new WebSocket(address, ca ? { protocols, tls: { ca } } : { protocols });
    this.socket = socket;
    this.shown = new Map();
    this.over = new Set();
    this.timer = setTimeout(() => this.lose(socket, "no answer"), CONNECT_MS);
    socket.onmessage = (event) => {
      if (this.socket !== socket) return;
      this.heardAt = Date.now();
      this.handle(socket, JSON.parse(String(event.data)) as ServerFrame);
    };
    socket.onclose = (event) => this.lose(socket, `closed ${event.code}`, event.code);
    socket.onerror = () => this.lose(socket, "error");
  }

  private lose(socket: WebSocket, why: string, code = 0): void {
    if (this.socket !== socket) return;
    this.socket = null;
    this.connected = false;
    this.stopTimers();
    socket.close();
    if (code === CLOSED_FOR_GOOD) {
      this.closed = true;
      this.faults.push(`sent away for good: ${why}`);
      return;
    }
    this.server += 1;
    const pauseMs = this.pauseMs;
    this.pauseMs = null;
    if (pauseMs !== null) return this.retry(pauseMs);
    const ceiling = Math.min(RETRY_CAP_MS, RETRY_BASE_MS * 2 ** this.attempt++);
    this.retry(ceiling / 2 + ((this.options.random ?? Math.random)() * ceiling) / 2);
  }

  private retry(afterMs: number): void {
    clearTimeout(this.timer);
    if (!this.closed) this.timer = setTimeout(() => this.connect(), afterMs);
  }

  private handle(socket: WebSocket, frame: ServerFrame): void {
    if (frame.type === "connected") return this.welcome(socket, frame);
    if (frame.type === "ack") return this.acknowledged(frame.client_id);
    if (frame.type === "message") return this.add(frame);
    if (frame.type === "chunk") return this.show(frame);
    if (frame.type === "disconnected") return this.farewell(frame);
    if (frame.type === "error" && frame.client_id) return this.refuse(frame.client_id, frame);
  }

  private welcome(socket: WebSocket, frame: Frame<"connected">): void {
    clearTimeout(this.timer);
    this.connected = true;
    this.attempt = 0;
    this.heartbeatMs = frame.heartbeat_ms;
    this.beat(socket);
    for (const entry of this.outbox) this.transmit(entry);
  }

  private farewell(frame: Frame<"disconnected">): void {
    this.pauseMs = frame.retry_after_ms;
    this.pausesMs.push(frame.retry_after_ms);
  }

  private beat(socket: WebSocket): void {
    clearInterval(this.heartbeat);
    this.heartbeat = setInterval(() => {
      if (Date.now() - this.heardAt > this.heartbeatMs * SILENT_HEARTBEATS) this.lose(socket, "silent");
      else this.write({ type: "ping" });
    }, this.heartbeatMs);
  }

  private transmit(entry: Stored["outbox"][number]): void {
    this.write({ type: "message", content: entry.content, client_id: entry.clientId });
    this.again(entry.clientId, ACK_MS);
  }

  /** Sends a message once more after a while, unless it has left the outbox by then. */
  private again(clientId: string, afterMs: number): void {
    clearTimeout(this.ackTimers.get(clientId));
    const resend = () => {
      const entry = this.outbox.find((waiting) => waiting.clientId === clientId);
      if (entry && this.connected) this.transmit(entry);
    };
    this.ackTimers.set(clientId, setTimeout(resend, afterMs));
  }

  private acknowledged(clientId: string): void {
    clearTimeout(this.ackTimers.get(clientId));
    this.ackTimers.delete(clientId);
    const index = this.outbox.findIndex((waiting) => waiting.clientId === clientId);
    if (index >= 0) this.outbox.splice(index, 1);
  }

  private refuse(clientId: string, frame: Frame<"error">): void {
    if (TRY_AGAIN.has(frame.code)) return this.again(clientId, (frame.retry_after ?? 2) * 1000);
    this.refused.push(frame);
    this.acknowledged(clientId);
  }

  private add(message: Message): void {
    if (message.client_id) this.acknowledged(message.client_id);
    if (message.seq !== this.lastSeq + 1) {
      this.faults.push(`message ${message.seq} came after ${this.lastSeq}`);
      if (message.seq > this.lastSeq) this.write({ type: "resume", after_seq: this.lastSeq });
      return;
    }
    this.messages.push(message);
    if (message.role !== "assistant") return;
    if (this.answer?.turnId === message.turn_id) {
      if (!message.content.startsWith(this.answer.text.trimEnd())) {
        this.faults.push(`"${this.answer.text}" was shown, "${message.content}" is stored`);
      }
      this.answer = null;
    }
    this.over.add(message.turn_id);
  }

  private show(chunk: Frame<"chunk">): void {
    const { turn_id: turnId, offset, content } = chunk;
    const expected = this.shown.get(turnId) ?? 0;
    if (offset !== expected) this.faults.push(`chunk at ${offset} instead of ${expected}`);
    if (this.over.has(turnId)) this.faults.push(`chunk "${content}" after its message`);
    this.shown.set(turnId, offset + content.length);
    const before = this.answer?.turnId === turnId ? this.answer.text : "";
    this.answer = { turnId, text: before.slice(0, offset) + content };
  }

  private write(frame: object): void {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(frame));
  }

  private stopTimers(): void {
    clearTimeout(this.timer);
    clearInterval(this.heartbeat);
    for (const timer of this.ackTimers.values()) clearTimeout(timer);
    this.ackTimers.clear();
  }
}
