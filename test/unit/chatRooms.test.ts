import { expect, test } from "bun:test";
import { addText, syncNow, type Peer, type Room } from "../../src/services/chatRooms.ts";

const room = (): Room => ({
  assistantId: "assistant",
  agentId: "agent",
  userId: "user",
  peers: new Set(),
  lastSeq: 1,
  state: "awake",
  stateReason: null,
  recent: [],
  turn: null,
  stale: false,
  reading: null,
});
const heard = (id: string, seq: number, text: string) => ({ turn: { id, seq, text, retrying: null }, offset: 0 });

test("text of an earlier answer that comes late does not replace the one that is being written", () => {
  const one = room();
  addText(one, heard("first", 1, "The first"));
  addText(one, heard("second", 3, "The sec"));
  expect(addText(one, heard("first", 1, "The first answer"))).toBe(true);
  expect(one.turn).toMatchObject({ id: "second", text: "The sec" });
});

test("a device that has read further than the room knows is shown no text of an answer that it may have had whole", () => {
  const one = room();
  addText(one, heard("first", 1, "The first"));
  const sent: unknown[] = [];
  const peer = { seq: 2, turn: null, state: "awake", isSlow: () => false, send: (frame: unknown) => sent.push(frame) };
  expect(syncNow(one, peer as unknown as Peer)).toBe(true);
  expect(sent).toEqual([]);
  one.lastSeq = 2;
  syncNow(one, peer as unknown as Peer);
  expect(sent).toMatchObject([{ type: "typing" }, { type: "chunk", offset: 0, content: "The first" }]);
});
