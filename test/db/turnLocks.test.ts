import { expect, test } from "bun:test";
import { connectDatabase } from "../../src/db/connect.ts";
import { migrate } from "../../src/db/migrate.ts";
import { renewLeases, requestStopOfUser } from "../../src/db/turns.ts";
import { createTestDatabase } from "../harness.ts";

test("leases of many turns that are renewed while their user is suspended: nobody waits in a circle", async () => {
  const sql = connectDatabase(await createTestDatabase(), { max: 4, name: "test" });
  await migrate(sql);
  const [userId, owner] = [crypto.randomUUID(), crypto.randomUUID()];
  await sql`insert into gateways (id, working_set) values ('g', 20)`;
  await sql`insert into users (id, email) values (${userId}, 'ann@example.org')`;
  const ids = Array.from({ length: 20 }, () => crypto.randomUUID());
  for (const id of ids) {
    await sql`insert into assistants (id, user_id, gateway_id, agent_id, voice, model)
      values (${id}, ${userId}, 'g', ${id}, 'nova', 'm')`;
    await sql`insert into turns (id, assistant_id, user_id, gateway_id, seq, status, lease_owner, lease_until)
      values (${id}, ${id}, ${userId}, 'g', 1, 'dispatched', ${owner}, now())`;
  }
  const often = async (act: () => Promise<unknown>) => {
    for (let n = 0; n < 100; n++) await act();
  };
  const stop = () => sql.begin((tx) => requestStopOfUser(tx, userId));
  const all = [
    often(() => renewLeases(sql, { owner, ids, leaseMs: 1000 })),
    often(() => renewLeases(sql, { owner, ids: ids.toReversed(), leaseMs: 1000 })),
    often(stop),
    often(stop),
  ];
  expect((await Promise.allSettled(all)).map(({ status }) => status)).toEqual(Array(4).fill("fulfilled"));
  await sql.end();
});
