import type { ServerFrame } from "../../src/protocol/chat.ts";
import { Connection } from "./connection.ts";
import type { SimulatedProcess } from "./process.ts";
import type { World } from "./world.ts";

/** What a device has said: until it is acknowledged or refused for good, it is sent again. */
export interface Said {
  clientId: string;
  content: string;
  ack: { seq: number; turnId: string; messageId: string } | null;
  refused: string | null;
}

type Frame<T extends ServerFrame["type"]> = Extract<ServerFrame, { type: T }>;

/** One device of a person: what it has, what it said, and every fault it sees on its connections. */
export class Device {
  connection: Connection | null = null;
  readonly connections: Connection[] = [];
  readonly said: Said[] = [];
  readonly messages = new Map<number, { role: string; content: string; finish: string | null }>();
  readonly faults: string[] = [];

  constructor(
    readonly name: string,
    readonly userId: string,
    readonly assistantId: string,
    readonly sessionId: string,
    private readonly world: World,
  ) {}

  /** The last message that it has, with all before it. */
  lastSeq(): number {
    let seq = 0;
    while (this.messages.has(seq + 1)) seq++;
    return seq;
  }

  connect(process: SimulatedProcess): void {
    if (this.connection || process.dead) return;
    this.connection = new Connection(this.world, this, process, this.lastSeq());
    this.connections.push(this.connection);
  }

  disconnected(connection: Connection): void {
    if (this.connection === connection) this.connection = null;
  }

  say(clientId: string, content: string): void {
    const said: Said = { clientId, content, ack: null, refused: null };
    this.said.push(said);
    this.sendAgain(said);
  }

  sendAgain(said: Said): void {
    this.connection?.send({ type: "message", client_id: said.clientId, content: said.content });
  }

  resume(): void {
    if (!this.connection) return;
    this.connection.resumed = true;
    this.connection.send({ type: "resume", after_seq: this.lastSeq() });
  }

  receive(on: Connection, frame: ServerFrame): void {
    if (frame.type === "ack") this.acknowledged(frame);
    else if (frame.type === "message") this.message(on, frame);
    else if (frame.type === "chunk") this.chunk(on, frame);
    else if (frame.type === "error" && frame.client_id) this.refused(frame.client_id, frame.code);
  }

  private acknowledged(frame: Frame<"ack">): void {
    const said = this.said.find((one) => one.clientId === frame.client_id);
    if (!said) return this.fault(`an ack for something never said: ${frame.client_id}`);
    const ack = { seq: frame.seq, turnId: frame.turn_id, messageId: frame.message_id };
    if (said.ack && JSON.stringify(said.ack) !== JSON.stringify(ack))
      this.fault(`two different acks of ${said.content}`);
    said.ack = ack;
  }

  private refused(clientId: string, code: string): void {
    const said = this.said.find((one) => one.clientId === clientId);
    if (code === "RATE_LIMITED") said!.refused = code;
    else if (code !== "service_unavailable") this.fault(`${said?.content} was answered by ${code}`);
  }

  private message(on: Connection, frame: Frame<"message">): void {
    const { seq } = frame;
    if (seq > on.cursor + 1) this.fault(`message ${seq} after ${on.cursor}: a gap`);
    if (seq <= on.cursor && !on.resumed) this.fault(`message ${seq} after ${on.cursor}: a repetition`);
    on.cursor = Math.max(on.cursor, seq);
    const chunks = frame.role === "assistant" ? on.chunks.get(frame.turn_id) : undefined;
    if (chunks) chunks.answered = true;
    const message = { role: frame.role, content: frame.content, finish: frame.finish };
    const known = this.messages.get(seq);
    if (known && JSON.stringify(known) !== JSON.stringify(message)) this.fault(`message ${seq} came in two versions`);
    this.messages.set(seq, message);
  }

  private chunk(on: Connection, frame: Frame<"chunk">): void {
    const seen = on.chunks.get(frame.turn_id) ?? { text: "", cursor: on.cursor, answered: false };
    on.chunks.set(frame.turn_id, seen);
    if (frame.offset !== seen.text.length)
      this.fault(`a chunk at ${frame.offset} when ${seen.text.length} characters were there ("${frame.content}")`);
    if (seen.answered) this.fault("a chunk of an answer that had come whole");
    seen.text += frame.content;
  }

  private fault(text: string): void {
    this.faults.push(`${this.name}: ${text}`);
    this.world.note(() => `FAULT SEEN by ${this.name}: ${text}`);
  }
}
