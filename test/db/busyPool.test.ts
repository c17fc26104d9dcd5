import { expect, test } from "bun:test";
import { connectDatabase } from "../../src/db/connect.ts";
import { createTestDatabase } from "../harness.ts";

/** So many queries the library sends to a connection before it waits for answers. */
const PIPELINE = 100;
const CONNECTIONS = 2;

// Unpatched, its BEGIN goes out and the connection stays everybody's: what others write then is never committed.
test("a transaction whose BEGIN is the last that a busy connection takes has it for itself all the same", async () => {
  const sql = connectDatabase(await createTestDatabase(), { max: CONNECTIONS, name: "busy pool" });
  await sql`create table said (n int)`;
  const keepBusy = () => Array.from({ length: CONNECTIONS }, () => sql`select pg_sleep(0.02)`.execute());
  await Promise.all(keepBusy());
  for (let before = (PIPELINE - 2) * CONNECTIONS; before <= (PIPELINE + 1) * CONNECTIONS; before++) {
    const busy = [...keepBusy(), ...Array.from({ length: before }, () => sql`select 1`.execute())];
    await Promise.all([...busy, sql.begin((tx) => tx`insert into said values (${before})`)]);
    const rows = await sql`select state from pg_stat_activity
      where datname = current_database() and state like 'idle in transaction%'`;
    expect(rows.length).toBe(0);
    expect((await sql`select 1 from said where n = ${before}`).length).toBe(1);
  }
  await sql.end();
});
