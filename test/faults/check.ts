import { expect } from "bun:test";
import type { World } from "./world.ts";

/**
 * What must hold when a cell is over: the invariants of the rows, and the same conversation everywhere. The only place
 * that says so.
 */
export async function checkWorld(world: World): Promise<void> {
  const { sql, assistantId, userId } = world;
  const rows = await sql`
    select seq::int, role, content, finish, turn_id from messages where assistant_id = ${assistantId} order by seq`;
  const [assistant] = await sql`
    select last_seq::int, message_count::int from assistants where id = ${assistantId}`;
  expect(rows.map((row) => row["seq"])).toEqual(rows.map((_, index) => index + 1));
  expect(assistant).toEqual({ lastSeq: rows.length, messageCount: rows.length });
  for (const device of world.devices) {
    expect(device.faults).toEqual([]);
    expect(device.refused).toEqual([]);
    expect(device.outbox).toEqual([]);
    expect(device.messages.map(({ seq, role, content, finish }) => ({ seq, role, content, finish }))).toEqual(
      rows.map(({ seq, role, content, finish }) => ({ seq, role, content, finish }) as never),
    );
  }
  const turns = await sql`
    select t.status, l.status as ledger,
      (select count(*)::int from messages m where m.turn_id = t.id and m.role = 'user') as questions,
      (select count(*)::int from messages m where m.turn_id = t.id and m.role = 'assistant') as answers,
      (select finish from messages m where m.turn_id = t.id and m.role = 'assistant') as finish
    from turns t left join usage_logs l on l.idempotency_key = t.id::text where t.user_id = ${userId} order by t.seq`;
  expect(turns.length).toBe(2);
  for (const turn of turns) expect(turn).toBeOneOf([ANSWERED, GIVEN_BACK]);
  const [usage] = await sql`
    select (select coalesce(sum(text_messages), 0)::int from daily_usage where user_id = ${userId}) as counter,
      (select coalesce(sum(amount), 0)::int from usage_logs
        where user_id = ${userId} and status in ('reserved', 'committed')) as ledger`;
  const charged = turns.filter((turn) => turn["status"] === "done").length;
  expect(usage).toEqual({ counter: charged, ledger: charged });
}

const ANSWERED = { status: "done", ledger: "committed", questions: 1, answers: 1, finish: "complete" };
const GIVEN_BACK = { status: "failed", ledger: "released", questions: 1, answers: 1, finish: "error" };
