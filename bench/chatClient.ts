import { newId } from "../src/lib/ids.ts";
import { now } from "./measure.ts";
import type { Person } from "./people.ts";

/** A turn as a client saw it; times in milliseconds. */
export interface TurnSeen {
  sentAt: number;
  /** 0 where the other side acknowledges nothing. */
  ackAt: number;
  firstTextAt: number;
  endAt: number;
  chunks: number;
  /** Of each chunk: from its making in the gateway to its arrival here. */
  delays: number[];
}

/** One device of one person, talking to a relay or straight to the gateway. */
export interface ChatClient {
  /** Sends a message and resolves when its answer is complete. */
  turn(content: string): Promise<TurnSeen>;
  close(): void;
}

const TURN_MS = 60_000;

/** What a client keeps while it waits for an answer: the same for every way of getting it. */
export class Waiting {
  readonly promise: Promise<TurnSeen>;
  private readonly seen: TurnSeen = { sentAt: now(), ackAt: 0, firstTextAt: 0, endAt: 0, chunks: 0, delays: [] };
  private readonly settle: (seen: TurnSeen) => void;
  private readonly fail: (error: Error) => void;
  private readonly timer = setTimeout(() => this.fail(new Error("a turn had no end within a minute")), TURN_MS);

  constructor() {
    const { promise, resolve, reject } = Promise.withResolvers<TurnSeen>();
    this.promise = promise;
    this.settle = resolve;
    this.fail = reject;
  }

  acknowledged(): void {
    this.seen.ackAt = now();
  }

  /** Text that came in one piece; it may be several chunks when the reader was slow. */
  text(content: string): void {
    const at = now();
    this.seen.firstTextAt ||= at;
    for (const [, stamp] of content.matchAll(/\|(\d{13}\.\d{3})\|/g)) {
      this.seen.chunks += 1;
      this.seen.delays.push(at - Number(stamp));
    }
  }

  end(): void {
    clearTimeout(this.timer);
    this.seen.endAt = now();
    this.settle(this.seen);
  }

  broken(why: string): void {
    clearTimeout(this.timer);
    this.fail(new Error(why));
  }
}

interface Frame {
  type: string;
  content?: string;
  role?: string;
  code?: string;
}

/** Opens a chat socket as Reef serves it; the relays that it is compared with speak the same frames. */
export function openChatClient(url: string, person: Person): Promise<ChatClient> {
  const address = `${url.replace(/^http/, "ws")}/ws/chat?agent_id=${person.agentId}`;
  const socket = new WebSocket(address, ["reef.v1", `bearer.${person.token}`]);
  const { promise, resolve, reject } = Promise.withResolvers<ChatClient>();
  let waiting: Waiting | null = null;
  const client: ChatClient = {
    turn(content) {
      waiting = new Waiting();
      socket.send(JSON.stringify({ type: "message", content, client_id: newId() }));
      return waiting.promise;
    },
    close: () => socket.close(),
  };
  socket.onmessage = (event) => {
    const frame = JSON.parse(String(event.data)) as Frame;
    if (frame.type === "ack") waiting?.acknowledged();
    else if (frame.type === "chunk") waiting?.text(frame.content ?? "");
    else if (frame.type === "message" && frame.role === "assistant") waiting?.end();
    else if (frame.type === "connected") resolve(client);
    else if (frame.type === "error") waiting?.broken(`error frame ${frame.code}`);
  };
  socket.onclose = (event) => {
    const why = `socket closed: ${event.code} ${event.reason}`;
    reject(new Error(why));
    waiting?.broken(why);
  };
  return promise;
}
