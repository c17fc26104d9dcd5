import { listConversationHeads, type Assistant } from "../db/assistants.ts";
import type { Message } from "../db/messages.ts";
import { listEndedSessions } from "../db/sessions.ts";
import { getAssistantUse, getUsage } from "../db/usage.ts";
import type { Deps } from "../deps.ts";
import { sleep } from "../lib/retry.ts";
import { CLOSE, type ServerFrame } from "../protocol/chat.ts";
import { ChatBus, type GrownText, type TurnKey } from "./chatBus.ts";
import {
  addMessages,
  addText,
  findResetReason,
  openRoom,
  readRoom,
  sentTo,
  syncNow,
  syncPeer,
  type Peer,
  type Room,
  type RunningTurn,
  type Sent,
} from "./chatRooms.ts";
import { createKeptText, KEPT_WITHIN_MS, type KeptText } from "./keptText.ts";
import { renderPlanFrame, renderUsageFrame } from "./usage.ts";
import { EVERYONE } from "./usageCache.ts";

type HubDeps = Pick<Deps, "sql" | "redis" | "subscriber" | "log" | "clock" | "config" | "processId" | "onClose">;

const RETRY_MS = 1_000;
/** How long a revoked session is remembered for sockets that are just being opened with its token. */
const REVOKED_MEMORY_MS = 60_000;
const HEADS_AT_ONCE = 1_000;

/**
 * Connects devices with conversations: everything that any device must see passes here. By level: whatever was missed
 * (a lost notice, a failed read) is read again, at the latest by `resync`.
 */
export class ChatHub {
  private readonly rooms = new Map<string, Room>();
  private readonly socketsOf = new Map<string, number>();
  private readonly revoked = new Map<string, number>();
  private readonly closing = new AbortController();
  private readonly kept: KeptText;
  private readonly bus: ChatBus;

  constructor(private readonly deps: HubDeps) {
    this.kept = createKeptText(deps);
    this.bus = new ChatBus(deps, {
      text: (assistantId, heard) => this.hearText(assistantId, heard),
      frame: (assistantId, frame, except) => void this.hearFrame(assistantId, frame, except),
      gap: () => this.rooms.forEach((room) => void this.refresh(room)),
    });
    deps.onClose("chat hub", 500, () => {
      this.closing.abort();
      this.bus.close();
      this.kept.close();
    });
  }

  /** Adds a device with its cursor at `peer.seq`; sends what it lacks. `turn`: the one that is being answered. */
  join(assistant: Assistant, peer: Peer, turn: { id: string; seq: number } | null): void {
    if (this.revoked.has(peer.sessionId)) return peer.close(CLOSE.policy, "session revoked");
    const room = this.rooms.get(assistant.id) ?? openRoom(assistant);
    if (!this.rooms.has(assistant.id)) {
      this.rooms.set(assistant.id, room);
      this.bus.subscribe(assistant.id);
    }
    room.peers.add(peer);
    this.socketsOf.set(peer.userId, this.countOf(peer.userId) + 1);
    if (turn && room.turn?.id !== turn.id) {
      addText(room, { turn: { ...turn, text: "", retrying: null }, offset: 0 });
      void this.readTextSoFar(room, { assistantId: assistant.id, ...turn });
    }
    void this.refresh(room).then(() => this.sync(room, peer));
  }

  leave(peer: Peer): void {
    const room = this.rooms.get(peer.assistantId);
    if (!room?.peers.delete(peer)) return;
    const left = this.countOf(peer.userId) - 1;
    if (left > 0) this.socketsOf.set(peer.userId, left);
    else this.socketsOf.delete(peer.userId);
    if (room.peers.size > 0) return;
    this.rooms.delete(peer.assistantId);
    this.bus.unsubscribe(peer.assistantId);
  }

  /** Brings a device up to date: its buffer has drained. */
  async catchUp(peer: Peer): Promise<void> {
    const room = this.rooms.get(peer.assistantId);
    if (!room) return;
    await this.refresh(room);
    this.sync(room, peer);
  }

  /** Sends a device again what came after `afterSeq`, or tells it to load the history. */
  async resume(peer: Peer, afterSeq: number): Promise<void> {
    const room = this.rooms.get(peer.assistantId);
    if (!room) return;
    await this.refresh(room);
    const reason = findResetReason(afterSeq, room.lastSeq);
    if (reason) peer.send({ type: "reset", last_seq: room.lastSeq, reason });
    // Going forward skips nothing that was not sent.
    peer.seq = reason ? room.lastSeq : Math.min(peer.seq, afterSeq);
    this.sync(room, peer);
  }

  /** A message was committed. `seq` alone (heard from another process) makes this one read it. */
  messageStored(assistantId: string, seq: number, message?: Message): void {
    const room = this.rooms.get(assistantId);
    if (!room || seq <= room.lastSeq) return;
    if (message && addMessages(room, [message])) this.syncAll(room);
    else void this.refresh(room);
  }

  /**
   * An answer began or grew: to the devices here at once, to others by Redis a moment later, which also keeps the text so
   * far for whoever comes later.
   */
  textGrew(turn: TurnKey, heard: GrownText): void {
    const { text, retrying } = heard;
    const room = this.rooms.get(turn.assistantId);
    const running = { id: turn.id, seq: turn.seq, retrying };
    if (room && addText(room, { turn: { ...running, text }, offset: 0 })) this.syncAll(room);
    if (text !== "") this.kept.keep(turn.id, text);
    this.bus.sendText(turn, heard);
  }

  /** What devices have been sent of a turn that another process, or an earlier run, was answering. */
  async sentText(turn: TurnKey): Promise<string> {
    const known = this.rooms.get(turn.assistantId)?.turn;
    const here = known?.id === turn.id ? known.text : "";
    const there = (await this.kept.read(turn.id)) ?? "";
    return there.length > here.length ? there : here;
  }

  /** What a device that is connected here was sent of an answer before now; what comes later it is sent. */
  sentTo(peer: Peer, turnId: string): Sent {
    const room = this.rooms.get(peer.assistantId);
    return room ? sentTo(room, peer, turnId) : { text: "", answer: null };
  }

  /** A frame for every device on an assistant, but one. */
  announce(assistantId: string, frame: ServerFrame, except?: string): void {
    const room = this.rooms.get(assistantId);
    if (room) broadcast(room, frame, except);
    this.bus.sendFrame(assistantId, frame, except);
  }

  assistantChanged(assistantId: string): void {
    const room = this.rooms.get(assistantId);
    if (room) void this.refresh(room);
  }

  sessionRevoked(sessionId: string): void {
    const now = this.deps.clock.now();
    for (const [id, at] of this.revoked) if (now - at > REVOKED_MEMORY_MS) this.revoked.delete(id);
    this.revoked.set(sessionId, now);
    for (const peer of this.peers()) if (peer.sessionId === sessionId) peer.close(CLOSE.policy, "session revoked");
  }

  /** A user's day came to a mark, or got other limits: their devices here are told. */
  async usageChanged(userId: string): Promise<void> {
    const rooms = [...this.rooms.values()].filter((room) => room.userId === userId);
    if (rooms.length === 0) return;
    const usage = await getUsage(this.deps.sql, userId).catch(() => null);
    if (usage) for (const room of rooms) broadcast(room, renderUsageFrame(usage), undefined);
  }

  /** A user's plan, or what it rests on, has changed, or everybody's: their devices here are told. */
  async planChanged(userId: string): Promise<void> {
    if (userId === EVERYONE) {
      for (const one of new Set(this.peers().map((peer) => peer.userId))) await this.planChanged(one);
      return;
    }
    const peers = this.peers().filter((peer) => peer.userId === userId);
    if (peers.length === 0) return;
    const { sql } = this.deps;
    const seen = await Promise.all([getUsage(sql, userId), getAssistantUse(sql, userId)]).catch(() => null);
    if (!seen) return;
    const [usage, assistants] = seen;
    for (const peer of peers) {
      // Who is slow is told by the next resync: its plan stays the old one.
      if (peer.isSlow()) continue;
      peer.plan = usage.plan;
      peer.send(renderPlanFrame(usage, assistants.limit));
      peer.send(renderUsageFrame(usage));
    }
  }

  /** Something may have been missed: compares every conversation and session that is open here with the rows. */
  async resync(): Promise<void> {
    await this.closeEndedSessions();
    await this.refreshChanged();
  }

  peers(): Peer[] {
    return [...this.rooms.values()].flatMap((room) => [...room.peers]);
  }

  countOf(userId: string): number {
    return this.socketsOf.get(userId) ?? 0;
  }

  private hearText(assistantId: string, heard: { turn: RunningTurn; offset: number }): void {
    const room = this.rooms.get(assistantId);
    if (!room) return;
    if (addText(room, heard)) this.syncAll(room);
    else void this.readText(room, { assistantId, ...heard.turn });
    // Redis was faster than Postgres' notice of the message that is being answered.
    if (room.lastSeq < heard.turn.seq) void this.refresh(room);
  }

  private async hearFrame(assistantId: string, frame: ServerFrame, except: string | undefined): Promise<void> {
    const room = this.rooms.get(assistantId);
    if (!room) return;
    // How a turn ended comes after its message, on every process.
    if (frame.type === "error" || frame.type === "usage") await this.refresh(room);
    broadcast(room, frame, except);
  }

  private syncAll(room: Room): void {
    for (const peer of room.peers) if (!syncNow(room, peer)) this.sync(room, peer);
  }

  private sync(room: Room, peer: Peer): void {
    syncPeer(this.deps, room, peer).catch(async (err: unknown) => {
      const about = { err, user_id: peer.userId, assistant_id: peer.assistantId };
      this.deps.log.warn(about, "a device could not be brought up to date; trying again");
      await sleep(RETRY_MS, this.closing.signal, this.deps.clock);
      void this.refresh(room);
    });
  }

  // One read at a time per room. What changed after it began may not be in it: then it is read once more.
  private refresh(room: Room): Promise<void> {
    room.stale = true;
    room.reading ??= this.readWhileStale(room);
    return room.reading;
  }

  private async readWhileStale(room: Room): Promise<void> {
    const { deps, closing } = this;
    while (room.stale && this.rooms.get(room.assistantId) === room && !closing.signal.aborted) {
      room.stale = false;
      try {
        if (await readRoom(deps, room)) this.syncAll(room);
        else for (const peer of room.peers) peer.close(CLOSE.policy, "this assistant was deleted");
      } catch (err) {
        const about = { err, user_id: room.userId, assistant_id: room.assistantId };
        deps.log.warn(about, "a conversation could not be read; trying again");
        room.stale = true;
        await sleep(RETRY_MS, closing.signal, deps.clock);
      }
    }
    room.reading = null;
  }

  private async readText(room: Room, turn: TurnKey): Promise<void> {
    const text = await this.kept.read(turn.id);
    if (text === null) return;
    const retrying = room.turn?.id === turn.id ? room.turn.retrying : null;
    if (addText(room, { turn: { id: turn.id, seq: turn.seq, text, retrying }, offset: 0 })) this.syncAll(room);
  }

  // What was said just before is kept only a moment later, and who was not here did not hear it.
  private async readTextSoFar(room: Room, turn: TurnKey): Promise<void> {
    await this.readText(room, turn);
    await sleep(KEPT_WITHIN_MS, this.closing.signal, this.deps.clock);
    if (room.turn?.id === turn.id && !this.closing.signal.aborted) await this.readText(room, turn);
  }

  private async closeEndedSessions(): Promise<void> {
    const peers = this.peers();
    const ids = [...new Set(peers.map((peer) => peer.sessionId))];
    const ended = new Set(await listEndedSessions(this.deps.sql, ids));
    for (const peer of peers) if (ended.has(peer.sessionId)) peer.close(CLOSE.policy, "session revoked");
  }

  private async refreshChanged(): Promise<void> {
    const ids = [...this.rooms.keys()];
    const behind = new Set<string>();
    for (let start = 0; start < ids.length; start += HEADS_AT_ONCE) {
      const some = ids.slice(start, start + HEADS_AT_ONCE);
      const heads = new Map((await listConversationHeads(this.deps.sql, some)).map((head) => [head.id, head]));
      for (const room of some.flatMap((id) => this.rooms.get(id) ?? [])) {
        const head = heads.get(room.assistantId);
        if (head?.lastSeq !== room.lastSeq || head.state !== room.state) void this.refresh(room);
        const isBehind = [...room.peers].some((peer) => head !== undefined && peer.plan !== head.plan);
        if (isBehind) behind.add(room.userId);
      }
    }
    for (const userId of behind) await this.planChanged(userId);
  }
}

function broadcast(room: Room, frame: ServerFrame, except: string | undefined): void {
  for (const peer of room.peers) if (peer.id !== except && !peer.isSlow()) peer.send(frame);
}
