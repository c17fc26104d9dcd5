import { expect, test } from "bun:test";
import { addText, type Room } from "../../src/services/chatRooms.ts";

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
