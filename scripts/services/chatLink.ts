import type { ServerFrame } from "../../src/protocol/chat.ts";
import { StartError } from "./process.ts";

const PING_MS = 5_000;
/** A server from which nothing came for so long, though asked, is gone. */
const SILENT_MS = 20_000;
const PAUSE_MS = 1_000;

type Waiting = { content: string; turnId: string | null; done: () => void };

/** A conversation over sockets that come and go. */
export type ChatLink = {
  /** Says one thing; resolves when it was answered or refused. Said while nobody listens, it goes out later. */
  say(content: string): Promise<void>;
  /** Asks to stop the answer; false when there is none, or nobody to ask. */
  stop(): boolean;
  close(): void;
  /** Rejects when the conversation can't go on. */
  lost: Promise<never>;
};

type Options = {
  /** Address of the socket without `after_seq`. */
  url: string;
  token: string;
  /** A fresh access token after a loss, or the old one when there is none to be had. */
  renew(): Promise<string>;
  /** How long it is tried to connect again; the first connection has thirty seconds at most. */
  giveUpMs: number;
  print(text: string): void;
  tell(note: string): void;
};

/** Opens the conversation and keeps it open. Resolves when it is connected. */
export async function openChatLink(options: Options): Promise<ChatLink> {
  const waiting = new Map<string, Waiting>();
  const show = createShow(options, waiting);
  const opened = Promise.withResolvers<void>();
  let socket: WebSocket | null = null;
  let leaving = false;

  const send = (frame: object) => {
    if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(frame));
  };
  const sendMessage = (clientId: string) => {
    const message = waiting.get(clientId);
    if (message) send({ type: "message", content: message.content, client_id: clientId });
  };
  const onFrame = (ws: WebSocket, frame: ServerFrame) => {
    if (show.frame(frame) === "again" && "client_id" in frame)
      setTimeout(() => sendMessage(String(frame.client_id)), 2 * PAUSE_MS);
    if (frame.type !== "connected") return;
    socket = ws;
    opened.resolve();
    for (const [clientId, { turnId }] of waiting) if (turnId === null) sendMessage(clientId);
  };
  const lost = keepConnected(options, show.lastSeq, onFrame, () => leaving);
  await Promise.race([opened.promise, lost]);
  return {
    lost,
    say: (content) =>
      new Promise((resolve) => {
        const clientId = crypto.randomUUID();
        const done = () => waiting.delete(clientId) && resolve();
        waiting.set(clientId, { content, turnId: null, done });
        sendMessage(clientId);
      }),
    stop() {
      if (waiting.size === 0 || socket?.readyState !== WebSocket.OPEN) return false;
      send({ type: "stop" });
      return true;
    },
    close() {
      leaving = true;
      socket?.close();
    },
  };
}

type OnFrame = (ws: WebSocket, frame: ServerFrame) => void;

/** One socket after the other, each from the last message that was seen. Rejects when that makes no sense any more. */
async function keepConnected(
  options: Options,
  lastSeq: () => number | null,
  onFrame: OnFrame,
  isLeaving: () => boolean,
): Promise<never> {
  let awaySince: number | null = Date.now();
  const hear: OnFrame = (ws, frame) => {
    if (frame.type === "connected") {
      if (lastSeq() !== null) options.tell("(connected again)");
      awaySince = null;
    }
    onFrame(ws, frame);
  };
  for (let token = options.token; ; token = await options.renew()) {
    const seen = lastSeq();
    const { code, reason } = await live(options.url + (seen === null ? "" : `&after_seq=${seen}`), token, hear);
    if (isLeaving()) await new Promise(() => undefined);
    if ((code === 1008 && !/expired/.test(reason)) || code === 4429)
      throw new StartError(`the connection was refused: ${reason}`);
    if (awaySince === null) options.tell("(not connected; trying again …)");
    awaySince ??= Date.now();
    if (Date.now() - awaySince > (lastSeq() === null ? Math.min(options.giveUpMs, 30_000) : options.giveUpMs))
      throw new StartError("Reef does not answer any more: is npm start still running?");
    await Bun.sleep(PAUSE_MS * (1 + Math.random()));
  }
}

/** One socket's life; resolves with how it ended. */
function live(url: string, token: string, onFrame: OnFrame): Promise<{ code: number; reason: string }> {
  return new Promise((ended) => {
    const ws = new WebSocket(url, ["reef.v1", `bearer.${token}`]);
    let heardAt = Date.now();
    const end = (code: number, reason: string) => {
      clearInterval(watch);
      ended({ code, reason });
    };
    const watch = setInterval(() => {
      if (Date.now() - heardAt > SILENT_MS) {
        ws.terminate();
        end(1006, "silent");
      } else if (ws.readyState === WebSocket.OPEN) ws.send('{"type":"ping"}');
    }, PING_MS);
    ws.onmessage = (message) => {
      heardAt = Date.now();
      onFrame(ws, JSON.parse(String(message.data)) as ServerFrame);
    };
    ws.onclose = (event) => end(event.code, event.reason);
  });
}

/** Prints what comes, each character once, and lets go on who waited for it. */
function createShow(options: Pick<Options, "print" | "tell">, waiting: Map<string, Waiting>) {
  let lastSeq: number | null = null;
  let turn = { id: "", printed: "" };
  const ended = new Set<string>();

  const accepted = (clientId: string, turnId: string) => {
    const message = waiting.get(clientId);
    if (!message) return;
    message.turnId = turnId;
    if (ended.has(turnId)) message.done();
  };
  const chunk = (turnId: string, offset: number, content: string) => {
    if (turnId !== turn.id) turn = { id: turnId, printed: "" };
    const fresh = content.slice(Math.max(0, turn.printed.length - offset));
    turn.printed += fresh;
    options.print(fresh);
  };
  const answer = (turnId: string, content: string, finish: string) => {
    const shown = turn.id === turnId ? turn.printed : "";
    options.print(content.startsWith(shown) ? content.slice(shown.length) : `\n${content}`);
    options.print(finish === "stopped" ? " (stopped)\n" : "\n");
    turn = { id: "", printed: "" };
    ended.add(turnId);
    for (const message of waiting.values()) if (message.turnId === turnId) message.done();
  };
  return {
    lastSeq: () => lastSeq,
    /** "again": this message should be sent once more. */
    frame(frame: ServerFrame): "again" | undefined {
      if (frame.type === "connected") lastSeq ??= frame.last_seq;
      else if (frame.type === "ack") accepted(frame.client_id, frame.turn_id);
      else if (frame.type === "chunk") chunk(frame.turn_id, frame.offset, frame.content);
      else if (frame.type === "message") {
        lastSeq = frame.seq;
        if (frame.role === "assistant") answer(frame.turn_id, frame.content, frame.finish);
        else if (frame.client_id) accepted(frame.client_id, frame.turn_id);
      } else if (frame.type === "state" && frame.state !== "awake")
        options.tell(`(${frame.state}${frame.reason ? `: ${frame.reason}` : ""} …)`);
      else if (frame.type === "error" && !frame.turn_id) {
        if (frame.client_id && frame.code === "service_unavailable") return "again";
        options.tell(`(${frame.message})`);
        if (frame.client_id) waiting.get(frame.client_id)?.done();
      }
    },
  };
}
