import { z } from "zod";
import { listConversationHeads, type Assistant } from "../db/assistants.ts";
import type { Message } from "../db/messages.ts";
import { listEndedSessions } from "../db/sessions.ts";
import type { Deps } from "../deps.ts";
import type { Timer } from "../lib/clock.ts";
import { sleep } from "../lib/retry.ts";
import { CLOSE, type ServerFrame } from "../protocol/chat.ts";
import {
  addMessages,
  addText,
  findResetReason,
  openRoom,
  readRoom,
  syncNow,
  syncPeer,
  type Peer,
  type Room,
  type RunningTurn,
} from "./chatRooms.ts";
import { createKeptText, KEPT_WITHIN_MS } from "./keptText.ts";

type HubDeps = Pick<Deps, "sql" | "redis" | "subscriber" | "log" | "clock" | "config" | "processId" | "onClose">;

const RETRY_MS = 1_000;
/** Growing text waits this long for more of it, or of other answers, on its way to other processes. */
const GATHER_MS = 10;
/** How long a revoked session is remembered for sockets that are just being opened with its token. */
const REVOKED_MEMORY_MS = 60_000;
const HEADS_AT_ONCE = 1_000;

/** What processes tell each other on `chat:{assistantId}`; messages themselves go by Postgres. */
const busSchema = z.discriminatedUnion("kind", [
  z.object({
    from: z.string(),
    kind: z.literal("text"),
    turn: z.object({ id: z.string(), seq: z.number(), text: z.string(), retrying: z.string().nullable() }),
    offset: z.number(),
  }),
  z.object({
    from: z.string(),
    kind: z.literal("frame"),
    frame: z.looseObject({ type: z.string() }),
    except: z.string().optional(),
  }),
]);
type BusMessage = z.infer<typeof busSchema>;
type Outgoing = BusMessage extends infer M ? (M extends BusMessage ? Omit<M, "from"> : never) : never;
type TurnKey = { assistantId: string; id: string; seq: number };

export type ChatHub = ReturnType<typeof createChatHub>;

/**
 * Connects devices with conversations: everything that any device must see passes here. By level: whatever was missed
 * (a lost notice, a failed read) is read again, at the latest by `resync`.
 */
export function createChatHub(deps: HubDeps) {
  const rooms = new Map<string, Room>();
  const socketsOf = new Map<string, number>();
  const revoked = new Map<string, number>();
  const grown = new Map<string, { turn: TurnKey; text: string; offset: number; retrying: string | null }>();
  let flushing: Timer | undefined;
  const kept = createKeptText(deps);
  const closing = new AbortController();
  deps.onClose("chat hub", 500, () => {
    closing.abort();
    deps.clock.clearTimeout(flushing);
    flush();
    kept.close();
  });
  const channelOf = (assistantId: string) => `${deps.config.REDIS_PREFIX}chat:${assistantId}`;

  // The sender stands first: what Redis sends back of our own is known by its head and not parsed.
  const ownHead = JSON.stringify({ from: deps.processId }).slice(0, -1);
  const render = (message: Outgoing) => JSON.stringify({ from: deps.processId, ...message });
  const publish = (assistantId: string, message: Outgoing) => {
    deps.redis.publish(channelOf(assistantId), render(message)).catch(() => 0);
  };
  // All that has grown since the last time, in one write.
  const flush = () => {
    flushing = undefined;
    if (grown.size === 0) return;
    const pipeline = deps.redis.pipeline();
    for (const { turn, text, offset, retrying } of grown.values()) {
      const fresh = { id: turn.id, seq: turn.seq, text: text.slice(offset), retrying };
      pipeline.publish(channelOf(turn.assistantId), render({ kind: "text", turn: fresh, offset }));
    }
    grown.clear();
    pipeline.exec().catch(() => null);
  };
  const syncAll = (room: Room) => {
    for (const peer of room.peers) if (!syncNow(room, peer)) sync(room, peer);
  };
  const sync = (room: Room, peer: Peer) => {
    syncPeer(deps, room, peer).catch(async (err: unknown) => {
      deps.log.warn({ err }, "a device could not be brought up to date; trying again");
      await sleep(RETRY_MS, closing.signal, deps.clock);
      void refresh(room);
    });
  };
  // One read at a time per room. What changed after it began may not be in it: then it is read once more.
  const refresh = (room: Room): Promise<void> => {
    room.stale = true;
    room.reading ??= readWhileStale(room);
    return room.reading;
  };
  const readWhileStale = async (room: Room): Promise<void> => {
    while (room.stale && rooms.get(room.assistantId) === room && !closing.signal.aborted) {
      room.stale = false;
      try {
        if (await readRoom(deps, room)) syncAll(room);
        else for (const peer of room.peers) peer.close(CLOSE.policy, "this assistant was deleted");
      } catch (err) {
        deps.log.warn({ err }, "a conversation could not be read; trying again");
        room.stale = true;
        await sleep(RETRY_MS, closing.signal, deps.clock);
      }
    }
    room.reading = null;
  };
  const readText = async (room: Room, turn: TurnKey) => {
    const text = await kept.read(turn.id);
    if (text === null) return;
    const retrying = room.turn?.id === turn.id ? room.turn.retrying : null;
    if (addText(room, { turn: { id: turn.id, seq: turn.seq, text, retrying }, offset: 0 })) syncAll(room);
  };
  // What was said just before is kept only a moment later, and who was not here did not hear it.
  const readTextSoFar = async (room: Room, turn: TurnKey) => {
    await readText(room, turn);
    await sleep(KEPT_WITHIN_MS, closing.signal, deps.clock);
    if (room.turn?.id === turn.id && !closing.signal.aborted) await readText(room, turn);
  };
  const broadcast = (room: Room, frame: ServerFrame, except?: string) => {
    for (const peer of room.peers) if (peer.id !== except && !peer.isSlow()) peer.send(frame);
  };
  const hearText = (room: Room, heard: { turn: RunningTurn; offset: number }) => {
    if (addText(room, heard)) syncAll(room);
    else void readText(room, { assistantId: room.assistantId, ...heard.turn });
    // Redis was faster than Postgres' notice of the message that is being answered.
    if (room.lastSeq < heard.turn.seq) void refresh(room);
  };
  const hear = async (assistantId: string, message: BusMessage) => {
    const room = rooms.get(assistantId);
    if (!room) return;
    if (message.kind === "text") return hearText(room, message);
    // How a turn ended comes after its message, on every process.
    if (message.frame.type === "error" || message.frame.type === "usage") await refresh(room);
    broadcast(room, message.frame as unknown as ServerFrame, message.except);
  };
  deps.subscriber.on("message", (channel: string, payload: string) => {
    if (payload.startsWith(ownHead)) return;
    const parsed = busSchema.safeParse(parseJson(payload));
    if (parsed.success) void hear(channel.slice(channelOf("").length), parsed.data);
  });
  deps.subscriber.on("ready", () => {
    for (const id of rooms.keys()) deps.subscriber.subscribe(channelOf(id)).catch(() => 0);
    for (const room of rooms.values()) void refresh(room);
  });
  const closeEndedSessions = async () => {
    const peers = allPeers(rooms);
    const ended = new Set(await listEndedSessions(deps.sql, [...new Set(peers.map((peer) => peer.sessionId))]));
    for (const peer of peers) if (ended.has(peer.sessionId)) peer.close(CLOSE.policy, "session revoked");
  };
  const refreshChanged = async () => {
    const ids = [...rooms.keys()];
    for (let start = 0; start < ids.length; start += HEADS_AT_ONCE) {
      const some = ids.slice(start, start + HEADS_AT_ONCE);
      const heads = new Map((await listConversationHeads(deps.sql, some)).map((head) => [head.id, head]));
      for (const room of some.flatMap((id) => rooms.get(id) ?? [])) {
        const head = heads.get(room.assistantId);
        if (head?.lastSeq !== room.lastSeq || head.state !== room.state) void refresh(room);
      }
    }
  };

  return {
    /** Adds a device with its cursor at `peer.seq`; sends what it lacks. `turn`: the one that is being answered. */
    join(assistant: Assistant, peer: Peer, turn: { id: string; seq: number } | null): void {
      if (revoked.has(peer.sessionId)) return peer.close(CLOSE.policy, "session revoked");
      let room = rooms.get(assistant.id);
      if (!room) {
        room = openRoom(assistant);
        rooms.set(assistant.id, room);
        deps.subscriber.subscribe(channelOf(assistant.id)).catch(() => 0);
      }
      room.peers.add(peer);
      socketsOf.set(peer.userId, (socketsOf.get(peer.userId) ?? 0) + 1);
      if (turn && room.turn?.id !== turn.id) {
        addText(room, { turn: { ...turn, text: "", retrying: null }, offset: 0 });
        void readTextSoFar(room, { assistantId: assistant.id, ...turn });
      }
      const joined = room;
      void refresh(room).then(() => sync(joined, peer));
    },
    leave(peer: Peer): void {
      const room = rooms.get(peer.assistantId);
      if (!room?.peers.delete(peer)) return;
      const left = (socketsOf.get(peer.userId) ?? 1) - 1;
      if (left > 0) socketsOf.set(peer.userId, left);
      else socketsOf.delete(peer.userId);
      if (room.peers.size > 0) return;
      rooms.delete(peer.assistantId);
      deps.subscriber.unsubscribe(channelOf(peer.assistantId)).catch(() => 0);
    },
    /** Brings a device up to date: its buffer has drained. */
    async catchUp(peer: Peer): Promise<void> {
      const room = rooms.get(peer.assistantId);
      if (!room) return;
      await refresh(room);
      sync(room, peer);
    },
    /** Sends a device again what came after `afterSeq`, or tells it to load the history. */
    async resume(peer: Peer, afterSeq: number): Promise<void> {
      const room = rooms.get(peer.assistantId);
      if (!room) return;
      await refresh(room);
      const reason = findResetReason(afterSeq, room.lastSeq);
      if (reason) peer.send({ type: "reset", last_seq: room.lastSeq, reason });
      // Going forward skips nothing that was not sent.
      peer.seq = reason ? room.lastSeq : Math.min(peer.seq, afterSeq);
      sync(room, peer);
    },
    /** A message was committed. `seq` alone (heard from another process) makes this one read it. */
    messageStored(assistantId: string, seq: number, message?: Message): void {
      const room = rooms.get(assistantId);
      if (!room || seq <= room.lastSeq) return;
      if (message && addMessages(room, [message])) syncAll(room);
      else void refresh(room);
    },
    /**
     * An answer began or grew to `text`, from `offset` on (UTF-16 units): to the devices here at once, to others by
     * Redis a moment later, which also keeps the text so far for whoever comes later.
     */
    textGrew(turn: TurnKey, heard: { text: string; offset: number; retrying: string | null }): void {
      const { text, offset, retrying } = heard;
      const room = rooms.get(turn.assistantId);
      const running = { id: turn.id, seq: turn.seq, retrying };
      if (room && addText(room, { turn: { ...running, text }, offset: 0 })) syncAll(room);
      if (text !== "") kept.keep(turn.id, text);
      const from = Math.min(offset, grown.get(turn.id)?.offset ?? offset);
      grown.set(turn.id, { turn, text, offset: from, retrying });
      flushing ??= deps.clock.setTimeout(flush, GATHER_MS);
    },
    /** What devices have been sent of a turn that another process, or an earlier run, was answering. */
    async sentText(turn: TurnKey): Promise<string> {
      const known = rooms.get(turn.assistantId)?.turn;
      const here = known?.id === turn.id ? known.text : "";
      const there = (await kept.read(turn.id)) ?? "";
      return there.length > here.length ? there : here;
    },
    /** A frame for every device on an assistant, but one. */
    announce(assistantId: string, frame: ServerFrame, except?: string): void {
      const room = rooms.get(assistantId);
      if (room) broadcast(room, frame, except);
      publish(assistantId, { kind: "frame", frame: { ...frame }, ...(except === undefined ? {} : { except }) });
    },
    assistantChanged(assistantId: string): void {
      const room = rooms.get(assistantId);
      if (room) void refresh(room);
    },
    sessionRevoked(sessionId: string): void {
      const now = deps.clock.now();
      for (const [id, at] of revoked) if (now - at > REVOKED_MEMORY_MS) revoked.delete(id);
      revoked.set(sessionId, now);
      for (const peer of allPeers(rooms)) if (peer.sessionId === sessionId) peer.close(CLOSE.policy, "session revoked");
    },
    /** Something may have been missed: compares every conversation and session that is open here with the rows. */
    async resync(): Promise<void> {
      await closeEndedSessions();
      await refreshChanged();
    },
    peers: () => allPeers(rooms),
    countOf: (userId: string) => socketsOf.get(userId) ?? 0,
  };
}

function allPeers(rooms: Map<string, Room>): Peer[] {
  return [...rooms.values()].flatMap((room) => [...room.peers]);
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
