import { findAssistant } from "../../src/db/assistants.ts";
import { findRunningTurn } from "../../src/db/turns.ts";
import { getUsage } from "../../src/db/usage.ts";
import type { ServerFrame } from "../../src/protocol/chat.ts";
import { handleFrame } from "../../src/routes/chatFrames.ts";
import type { Peer } from "../../src/services/chatRooms.ts";
import type { Device } from "./device.ts";
import type { SimulatedProcess } from "./process.ts";
import type { World } from "./world.ts";

/** How many frames may wait for a slow reader. */
const BUFFER_FRAMES = 3;

/**
 * One chat socket between a device and a process, as routes/chat.ts has it: frames in order in both directions, lost
 * when it breaks, a buffer for a slow reader. It also remembers what it saw of each answer.
 */
export class Connection {
  readonly name: string;
  /** As the device knows it; the process may find out later. */
  open = true;
  /** The last message seen on this connection. */
  cursor: number;
  /** After a resume what was seen may come again. */
  resumed = false;
  readonly chunks = new Map<string, { text: string; cursor: number; answered: boolean }>();
  private slow = false;
  private readonly held: string[] = [];
  private peer: Peer | null = null;
  private gone = false;
  private work: Promise<void> = Promise.resolve();

  constructor(
    private readonly world: World,
    readonly device: Device,
    readonly process: SimulatedProcess,
    readonly afterSeq: number,
  ) {
    this.name = world.unique(`${device.name}@${process.name}`);
    this.cursor = afterSeq;
    process.connections.add(this);
    this.toProcess("connects", () => (this.work = this.accept()));
  }

  send(frame: Record<string, unknown>): void {
    this.toProcess(`${this.device.name} sends ${String(frame["type"])}`, () => {
      this.work = this.work.then(() => this.handle(frame));
    });
  }

  /** The device is gone without a word; what it had sent may still arrive. */
  drop(keepsSent: boolean): void {
    if (!this.open) return;
    this.open = false;
    this.device.disconnected(this);
    this.world.drop(this.down());
    if (!keepsSent) this.world.drop(this.up());
    this.toProcess("hears that it is closed", () => this.leave());
  }

  processGone(): void {
    this.gone = true;
    if (!this.open) return;
    // The close comes behind the frames that were on their way.
    this.toDevice("closed", () => this.closed());
  }

  /** The process closes it. */
  sendAway(): void {
    this.leave();
    this.processGone();
  }

  readSlowly(): void {
    this.slow = true;
  }

  readOn(): void {
    if (!this.slow) return;
    this.slow = false;
    for (const frame of this.held.splice(0)) this.pass(frame);
    this.toProcess("drained", () => {
      if (this.peer && !this.peer.isSlow()) void this.process.hub.catchUp(this.peer);
    });
  }

  private async handle(frame: Record<string, unknown>): Promise<void> {
    if (this.peer) await handleFrame(this.process.deps, this.process, this.peer, JSON.stringify(frame));
  }

  private async accept(): Promise<void> {
    const { deps, hub } = this.process;
    const key = { userId: this.device.userId, assistantId: this.device.assistantId };
    try {
      const assistant = await findAssistant(deps.sql, { userId: key.userId, id: key.assistantId });
      await getUsage(deps.sql, key.userId);
      const turn = await findRunningTurn(deps.sql, key);
      if (this.gone || !assistant || this.process.stopping) return this.sendAway();
      const seq = Math.min(this.afterSeq, assistant.lastSeq);
      this.peer = this.createPeer(assistant.agentId, assistant.state, seq);
      hub.join(assistant, this.peer, turn);
    } catch {
      this.sendAway();
    }
  }

  private createPeer(agentId: string, state: string, seq: number): Peer {
    const isSlow = () => this.held.length >= BUFFER_FRAMES;
    return {
      id: this.name,
      userId: this.device.userId,
      sessionId: this.device.sessionId,
      assistantId: this.device.assistantId,
      agentId,
      expiresAt: Number.MAX_SAFE_INTEGER,
      lastHeardMs: 0,
      seq,
      turn: null,
      plan: "free",
      state,
      isSlow,
      send: (frame) => {
        const text = typeof frame === "string" ? frame : JSON.stringify(frame);
        if (this.slow) this.held.push(text);
        else this.pass(text);
        return isSlow() ? "slow" : "ok";
      },
      close: () => this.sendAway(),
    };
  }

  private pass(text: string): void {
    if (!this.open || this.gone) return;
    const frame = JSON.parse(text) as ServerFrame;
    this.toDevice(`gets ${frame.type}`, () => this.device.receive(this, frame));
  }

  private leave(): void {
    if (this.gone) return;
    this.gone = true;
    this.process.connections.delete(this);
    if (this.peer) this.process.hub.leave(this.peer);
    this.peer = null;
  }

  private closed(): void {
    if (!this.open) return;
    this.open = false;
    this.device.disconnected(this);
  }

  private toProcess(label: string, run: () => unknown): void {
    this.world.add({ channel: this.up(), owner: this.process, label: `${this.name} ${label}`, run: () => void run() });
  }

  private toDevice(label: string, run: () => void): void {
    this.world.add({ channel: this.down(), owner: this.world.outside, label: `${this.name} ${label}`, run });
  }

  private up(): string {
    return `up:${this.name}`;
  }

  private down(): string {
    return `down:${this.name}`;
  }
}
