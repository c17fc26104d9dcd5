import { z } from "zod";
import type { Assistant } from "../db/assistants.ts";
import type { Message } from "../db/messages.ts";
import type { Deps } from "../deps.ts";
import { CLOSE, type ServerFrame } from "../protocol/chat.ts";
import { addMessages, addText, readRoom, syncNow, syncPeer, type Peer, type Room } from "./chatRooms.ts";

type HubDeps = Pick<Deps, "sql" | "redis" | "subscriber" | "log" | "config" | "processId">;

const TEXT_SECONDS = 3600;
/** Text for other processes is gathered this long: a write to Redis for each chunk costs more than the chunk itself. */
const GATHER_MS = 10;

/** What processes tell each other on `chat:{assistantId}`; messages themselves go by Postgres. */
const busSchema = z.discriminatedUnion("kind", [
  z.object({ from: z.string(), kind: z.literal("text"), turnId: z.string(), offset: z.number(), content: z.string() }),
  z.object({
    from: z.string(),
    kind: z.literal("frame"),
    frame: z.looseObject({ type: z.string() }),
    except: z.string().optional(),
  }),
]);
type BusMessage = z.infer<typeof busSchema>;
type Outgoing = BusMessage extends infer M ? (M extends BusMessage ? Omit<M, "from"> : never) : never;

export type ChatHub = ReturnType<typeof createChatHub>;

/** Connects devices with conversations: everything that any device must see passes here. */
export function createChatHub(deps: HubDeps) {
  const rooms = new Map<string, Room>();
  const socketsOf = new Map<string, number>();
  const grown = new Map<string, { assistantId: string; text: string; offset: number }>();
  let flushing: ReturnType<typeof setTimeout> | null = null;
  const channelOf = (assistantId: string) => `${deps.config.REDIS_PREFIX}chat:${assistantId}`;

  const render = (message: Outgoing) => JSON.stringify({ from: deps.processId, ...message });
  const publish = (assistantId: string, message: Outgoing) => {
    deps.redis.publish(channelOf(assistantId), render(message)).catch(() => 0);
  };
  // All that has grown since the last time, in one write: the text so far is kept, its new part is told.
  const flush = () => {
    flushing = null;
    const pipeline = deps.redis.pipeline();
    for (const [turnId, { assistantId, text, offset }] of grown) {
      if (text !== "") pipeline.set(`turn:${turnId}:text`, text, "EX", TEXT_SECONDS);
      pipeline.publish(channelOf(assistantId), render({ kind: "text", turnId, offset, content: text.slice(offset) }));
    }
    grown.clear();
    pipeline.exec().catch(() => null);
  };
  const syncAll = (room: Room) => {
    for (const peer of room.peers) if (!syncNow(room, peer)) sync(room, peer);
  };
  const sync = (room: Room, peer: Peer) => {
    syncPeer(deps, room, peer).catch((err: unknown) => deps.log.warn({ err }, "could not catch up; will try again"));
  };
  // One read at a time per room; a second wish while one runs is served by one more.
  const refresh = (room: Room): Promise<void> => {
    room.reading ??= readOnce(room).finally(() => (room.reading = null));
    return room.reading;
  };
  const readOnce = async (room: Room) => {
    try {
      if (!(await readRoom(deps, room))) {
        for (const peer of room.peers) peer.close(CLOSE.policy, "this assistant was deleted");
        return;
      }
      syncAll(room);
    } catch (err) {
      deps.log.warn({ err }, "could not read a conversation; the next event tries again");
    }
  };
  const readText = async (room: Room, turnId: string) => {
    const text = await deps.redis.get(`turn:${turnId}:text`).catch(() => null);
    if (text !== null && addText(room, turnId, 0, text)) syncAll(room);
  };
  const broadcast = (room: Room, frame: ServerFrame, except?: string) => {
    for (const peer of room.peers) if (peer.id !== except && !peer.isSlow()) peer.send(frame);
  };
  const hear = (assistantId: string, message: BusMessage) => {
    const room = rooms.get(assistantId);
    if (!room) return;
    if (message.kind === "frame") return broadcast(room, message.frame as unknown as ServerFrame, message.except);
    if (addText(room, message.turnId, message.offset, message.content)) syncAll(room);
    else void readText(room, message.turnId);
  };
  const own = `{"from":"${deps.processId}"`;
  deps.subscriber.on("message", (channel: string, payload: string) => {
    // Redis also sends back what we said ourselves; it need not be read to be known.
    if (payload.startsWith(own)) return;
    const parsed = busSchema.safeParse(parseJson(payload));
    if (parsed.success) hear(channel.slice(channelOf("").length), parsed.data);
  });
  deps.subscriber.on("ready", () => {
    for (const id of rooms.keys()) deps.subscriber.subscribe(channelOf(id)).catch(() => 0);
    for (const room of rooms.values()) void refresh(room);
  });

  return {
    /** Adds a device with its cursor at `peer.seq`; sends what it lacks. */
    join(assistant: Assistant, peer: Peer, turnId: string | null): void {
      let room = rooms.get(assistant.id);
      if (!room) {
        room = openRoom(assistant);
        rooms.set(assistant.id, room);
        deps.subscriber.subscribe(channelOf(assistant.id)).catch(() => 0);
      }
      room.peers.add(peer);
      socketsOf.set(peer.userId, (socketsOf.get(peer.userId) ?? 0) + 1);
      if (turnId && room.turn?.id !== turnId) void readText(room, turnId);
      void refresh(room).then(() => sync(room, peer));
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
    /** Brings a device up to date: after a resume, or when its buffer has drained. */
    catchUp(peer: Peer): void {
      const room = rooms.get(peer.assistantId);
      if (room) void refresh(room).then(() => sync(room, peer));
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
     * Redis a moment later; it also keeps the text so far for whoever comes later.
     */
    textGrew(assistantId: string, turnId: string, text: string, offset: number): void {
      const room = rooms.get(assistantId);
      if (room && addText(room, turnId, 0, text)) syncAll(room);
      grown.set(turnId, { assistantId, text, offset: Math.min(offset, grown.get(turnId)?.offset ?? offset) });
      flushing ??= setTimeout(flush, GATHER_MS);
    },
    /** What devices have been sent of a turn that another process, or an earlier run, was answering. */
    async sentText(assistantId: string, turnId: string): Promise<string> {
      const turn = rooms.get(assistantId)?.turn;
      const here = turn?.id === turnId ? turn.text : "";
      const kept = (await deps.redis.get(`turn:${turnId}:text`).catch(() => null)) ?? "";
      return kept.length > here.length ? kept : here;
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
      for (const peer of allPeers(rooms)) if (peer.sessionId === sessionId) peer.close(CLOSE.policy, "session revoked");
    },
    /** Something may have been missed everywhere: read everything again. */
    refreshAll(): void {
      for (const room of rooms.values()) void refresh(room);
    },
    peers: () => allPeers(rooms),
    countOf: (userId: string) => socketsOf.get(userId) ?? 0,
  };
}

function openRoom(assistant: Assistant): Room {
  return {
    assistantId: assistant.id,
    agentId: assistant.agentId,
    userId: assistant.userId,
    peers: new Set(),
    lastSeq: assistant.lastSeq,
    state: assistant.state,
    stateReason: assistant.stateReason,
    recent: [],
    turn: null,
    reading: null,
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
