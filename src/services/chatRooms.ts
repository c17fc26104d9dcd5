import { findAssistant, type Assistant } from "../db/assistants.ts";
import { listMessages, type Message } from "../db/messages.ts";
import type { Deps } from "../deps.ts";
import type { ServerFrame } from "../protocol/chat.ts";
import { renderMessage } from "./messageView.ts";

const RECENT_MESSAGES = 100;
const PAGE = 100;

/** More than this is not sent over the socket: the client reads the history, page by page, as fast as it can show it. */
export const CATCH_UP_MESSAGES = 1000;

/** Why a client that has everything up to `afterSeq` can't be brought up to date here; null when it can. */
export function findResetReason(afterSeq: number, lastSeq: number): "too_far_behind" | "ahead" | null {
  // It knows what we don't: another database, or one that was set back.
  if (afterSeq > lastSeq) return "ahead";
  return lastSeq - afterSeq > CATCH_UP_MESSAGES ? "too_far_behind" : null;
}

/** A connected device, whatever carries its frames. */
export interface Peer {
  id: string;
  userId: string;
  sessionId: string;
  assistantId: string;
  agentId: string;
  /** Seconds since 1970. */
  expiresAt: number;
  lastHeardMs: number;
  /** The last message it has been sent, and how much of the running answer. */
  seq: number;
  turn: { id: string; offset: number } | null;
  state: string;
  /** The plan that it was last told of. */
  plan: string;
  /** "slow": its buffer is full, nothing is added until it drains. */
  send(frame: ServerFrame | string): "ok" | "slow";
  isSlow(): boolean;
  close(code: number, reason: string): void;
}

/** What a process knows of an assistant that somebody here is connected to. */
export interface Room {
  assistantId: string;
  agentId: string;
  userId: string;
  peers: Set<Peer>;
  lastSeq: number;
  state: string;
  stateReason: string | null;
  /** The newest messages without a gap, ending at lastSeq. */
  recent: Message[];
  turn: RunningTurn | null;
  /** Something may have changed since the last read began. */
  stale: boolean;
  reading: Promise<void> | null;
}

/** The answer that is being written: `seq` numbers the message it answers. */
export interface RunningTurn {
  id: string;
  seq: number;
  text: string;
  /** Why the model is being asked again, while it is; nothing is lost, it only takes longer. */
  retrying: string | null;
}

/** A room as it is before anything of it was read. */
export function openRoom(assistant: Assistant): Room {
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
    stale: false,
    reading: null,
  };
}

/*
 * Delivery is by level, not by event: a peer has a cursor (last message, offset in the running answer), and `syncPeer`
 * sends all that it lacks. An event only says that there may be more. So a lost, doubled or late event, a slow reader
 * and a resume are the same case, and no frame is sent twice or left out.
 */

/** Sends a peer everything after its cursor. Reads Postgres only for what this process no longer holds. */
export async function syncPeer(deps: Pick<Deps, "sql">, room: Room, peer: Peer): Promise<void> {
  while (peer.seq < room.lastSeq && room.peers.has(peer) && !peer.isSlow()) {
    const held = messagesAfter(room, peer.seq);
    const messages =
      held ??
      (await listMessages(deps.sql, {
        userId: room.userId,
        assistantId: room.assistantId,
        afterSeq: peer.seq,
        beforeSeq: null,
        limit: PAGE,
      }));
    if (messages.length === 0) break;
    for (const message of messages) {
      if (message.seq !== peer.seq + 1 || peer.isSlow()) continue;
      sendMessage(room, peer, message);
    }
  }
  if (peer.seq >= room.lastSeq) syncText(room, peer);
  syncState(room, peer);
}

/** The part of `syncPeer` that needs no database: for a room whose peers are all up to date this is all there is. */
export function syncNow(room: Room, peer: Peer): boolean {
  if (peer.isSlow()) return true;
  const held = messagesAfter(room, peer.seq);
  if (!held) return false;
  for (const message of held) {
    // The rest when it has drained.
    if (peer.isSlow()) return true;
    sendMessage(room, peer, message);
  }
  syncText(room, peer);
  syncState(room, peer);
  return true;
}

function sendMessage(room: Room, peer: Peer, message: Message): void {
  peer.seq = message.seq;
  if (message.role === "assistant" && peer.turn?.id === message.turnId) peer.turn = null;
  peer.send({ type: "message", ...renderMessage(message, room.agentId) });
}

function syncText(room: Room, peer: Peer): void {
  const turn = room.turn;
  // An answer never comes before the message it answers. Nor after its own end, which a peer that has read further than
  // the room knows may have had.
  if (!turn || peer.seq < turn.seq || peer.seq > room.lastSeq || peer.isSlow()) return;
  if (peer.turn?.id !== turn.id) {
    peer.turn = { id: turn.id, offset: 0 };
    peer.send({ type: "typing", agentId: room.agentId, role: "assistant" });
  }
  const offset = peer.turn.offset;
  if (offset >= turn.text.length) return;
  peer.turn.offset = turn.text.length;
  peer.send({ type: "chunk", content: turn.text.slice(offset), agentId: room.agentId, turn_id: turn.id, offset });
}

function syncState(room: Room, peer: Peer): void {
  const retrying = room.turn?.retrying ?? null;
  const state = retrying === null ? room.state : "retrying";
  const reason = retrying ?? room.stateReason;
  if (peer.state === state || peer.isSlow()) return;
  peer.state = state;
  peer.send({ type: "state", state, ...(reason ? { reason } : {}) });
}

function messagesAfter(room: Room, seq: number): Message[] | null {
  if (seq >= room.lastSeq) return [];
  const first = room.recent[0];
  if (!first || first.seq > seq + 1) return null;
  return room.recent.filter((message) => message.seq > seq);
}

/** Adds messages that follow without a gap; false when one is missing before them. */
export function addMessages(room: Room, messages: Message[]): boolean {
  for (const message of messages) {
    if (message.seq <= room.lastSeq) continue;
    if (message.seq !== room.lastSeq + 1) return false;
    room.recent.push(message);
    room.lastSeq = message.seq;
    if (message.role === "assistant" && room.turn?.id === message.turnId) room.turn = null;
  }
  if (room.recent.length > RECENT_MESSAGES) room.recent.splice(0, room.recent.length - RECENT_MESSAGES);
  return true;
}

/**
 * What was heard of a running answer: `text` begins at `offset`. False when some text before it is missing. Text that
 * differs from what is known (another run of a lost turn) is left out: devices have seen the first, and the stored
 * message puts it right.
 */
export function addText(room: Room, heard: { turn: RunningTurn; offset: number }): boolean {
  const { id, seq, text, retrying } = heard.turn;
  if (room.recent.some((message) => message.turnId === id && message.role === "assistant")) return true;
  // Redis may bring the end of an answer after another process has begun the next one: its message is on its way.
  if (room.turn && seq < room.turn.seq) return true;
  if (room.turn?.id !== id) room.turn = { id, seq, text: "", retrying };
  const turn = room.turn;
  turn.retrying = retrying;
  if (heard.offset > turn.text.length) return false;
  if (text.startsWith(turn.text.slice(heard.offset))) turn.text = turn.text.slice(0, heard.offset) + text;
  return true;
}

/** Reads a room's row and newest messages again: at its start and after a gap in what was heard. Null: it is gone. */
export async function readRoom(deps: Pick<Deps, "sql">, room: Room): Promise<boolean> {
  const assistant = await findAssistant(deps.sql, { userId: room.userId, id: room.assistantId });
  if (!assistant) return false;
  room.state = assistant.state;
  room.stateReason = assistant.status === "paused" ? "paused" : assistant.stateReason;
  while (room.lastSeq < assistant.lastSeq) {
    const messages = await listMessages(deps.sql, {
      userId: room.userId,
      assistantId: room.assistantId,
      afterSeq: room.lastSeq,
      beforeSeq: null,
      limit: PAGE,
    });
    if (messages.length === 0) break;
    addMessages(room, messages);
  }
  return true;
}
