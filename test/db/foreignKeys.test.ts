import { expect, test } from "bun:test";
import { connectDatabase } from "../../src/db/connect.ts";
import { migrate } from "../../src/db/migrate.ts";
import { createTestDatabase } from "../harness.ts";

test("rows that refer to a user, an assistant or a turn are found by an index when that goes", async () => {
  const sql = connectDatabase(await createTestDatabase(), { max: 1, name: "test" });
  await migrate(sql);
  // A partial index does not serve the check of a foreign key.
  const bare = await sql<{ name: string }[]>`
    select c.conrelid::regclass || '.' || a.attname as name from pg_constraint c
    join pg_attribute a on a.attrelid = c.conrelid and a.attnum = c.conkey[1]
    where c.contype = 'f' and c.confrelid in ('users'::regclass, 'assistants'::regclass, 'turns'::regclass)
      and not exists (select 1 from pg_index i
        where i.indrelid = c.conrelid and i.indpred is null and i.indkey[0] = c.conkey[1]) order by 1`;
  expect(bare.map(({ name }) => name)).toEqual([]);
  await sql.end();
});
