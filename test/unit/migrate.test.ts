import { expect, test } from "bun:test";
import { connectDatabase } from "../../src/db/connect.ts";
import { migrate } from "../../src/db/migrate.ts";
import { createTestDatabase } from "../harness.ts";

test("waiting for another process's migration is not cut short by the pool's limits, which stay for the rest", async () => {
  const url = await createTestDatabase();
  const other = connectDatabase(url, { max: 1, name: "other" });
  const limited = new URL(url);
  limited.searchParams.set("statement_timeout", "200");
  limited.searchParams.set("idle_in_transaction_session_timeout", "300");
  const sql = connectDatabase(limited.toString(), { max: 1, name: "limited" });
  await other`select pg_advisory_lock(7033001)`;
  const migrated = migrate(sql);
  await Bun.sleep(600);
  await other`select pg_advisory_unlock(7033001)`;
  expect(await migrated).toEqual([]);
  const [now] = await sql`select current_setting('statement_timeout') as statement,
    current_setting('idle_in_transaction_session_timeout') as idle`;
  expect({ ...now }).toEqual({ statement: "200ms", idle: "300ms" });
  await Promise.all([sql.end(), other.end()]);
});
