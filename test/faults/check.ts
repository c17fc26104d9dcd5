import { expect } from "bun:test";
import type { Deps } from "../../src/deps.ts";
import { INVARIANTS } from "../../src/services/invariants.ts";
import type { World } from "./world.ts";

const CHECK_MS = 10_000;
/** The rules about rows alone: conversations, turns, usage, owners. */
const ABOUT_ROWS = INVARIANTS.filter((invariant) => [1, 2, 3, 7].includes(invariant.rule));

/** What must hold when a cell is over: the invariants of the rows, both messages ended, the same conversation everywhere. */
export async function checkWorld(world: World): Promise<void> {
  const { sql, assistantId, userId } = world;
  // All turns have ended: how long one may last does not matter.
  const deps = { sql, config: { TURN_WAIT_MS: 0, TURN_TOTAL_MS: 0 } } as unknown as Deps;
  for (const rule of ABOUT_ROWS) {
    const { samples } = await rule.check(deps, CHECK_MS);
    expect({ rule: rule.sentence, broken: samples }).toEqual({ rule: rule.sentence, broken: [] });
  }
  const turns = await sql`select status from turns where user_id = ${userId}`;
  expect(turns.length).toBe(2);
  for (const turn of turns) expect(turn["status"]).toBeOneOf(["done", "failed"]);
  const rows = await sql`
    select seq::int, role, content, finish from messages where assistant_id = ${assistantId} order by seq`;
  for (const device of world.devices) {
    expect(device.faults).toEqual([]);
    expect(device.refused).toEqual([]);
    expect(device.outbox).toEqual([]);
    expect(device.messages.map(({ seq, role, content, finish }) => ({ seq, role, content, finish }))).toEqual(
      rows.map(({ seq, role, content, finish }) => ({ seq, role, content, finish }) as never),
    );
  }
}
