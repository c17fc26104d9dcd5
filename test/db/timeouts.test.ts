import { expect, test } from "bun:test";
import { connectDatabase } from "../../src/db/connect.ts";
import { withAdvisoryLock } from "../../src/db/locks.ts";
import { migrate } from "../../src/db/migrate.ts";
import { createTestDatabase } from "../harness.ts";

const limitOf = async (sql: ReturnType<typeof connectDatabase>) =>
  (await sql`select current_setting('transaction_timeout', true) as "limit"`)[0]!["limit"];

test("sessions that open after a migration have bounded transactions; work under a lock has longer, a migration no end", async () => {
  const url = await createTestDatabase();
  const first = connectDatabase(url, { max: 1, name: "first" });
  await migrate(first);
  expect(await limitOf(first)).toBe("40s");
  const second = connectDatabase(url, { max: 1, name: "second" });
  expect(await limitOf(second)).toBe("40s");
  const pool = connectDatabase(url, { max: 2, name: "pool" });
  const inside = await withAdvisoryLock(
    pool,
    "x",
    async () =>
      pool`select 1 from pg_locks l join pg_stat_activity a on a.pid = l.pid where l.locktype = 'advisory' and a.application_name = 'pool'`,
  );
  expect(inside?.length).toBe(1);
  await Promise.all([first.end(), second.end(), pool.end()]);
});

test("work under a lock may go on for longer than a transaction of that database", async () => {
  const url = await createTestDatabase();
  const admin = connectDatabase(url, { max: 1, name: "admin" });
  await admin.unsafe(`alter database ${new URL(url).pathname.slice(1)} set transaction_timeout = 500`);
  const pool = connectDatabase(url, { max: 2, name: "pool" });
  const kept = await withAdvisoryLock(pool, "x", async (lock) => {
    await Bun.sleep(1_000);
    await lock.requireHeld();
    return "kept";
  });
  expect(kept).toBe("kept");
  // And not for ever.
  const lost = withAdvisoryLock(pool, "x", (lock) => Bun.sleep(1_000).then(() => lock.requireHeld()), { workMs: 200 });
  await lost.then(
    () => expect.unreachable(),
    () => undefined,
  );
  await Promise.all([admin.end(), pool.end({ timeout: 0 })]);
});

test("a transaction that goes on beyond its limit is ended with its connection, and its locks are free", async () => {
  const url = await createTestDatabase();
  const sql = connectDatabase(url, { max: 2, name: "other" });
  await migrate(sql);
  await sql`create table held (id int primary key)`;
  await sql`insert into held values (1)`;
  const name = new URL(url).pathname.slice(1);
  await sql.unsafe(`alter database ${name} set transaction_timeout = 500`);
  const vanishing = connectDatabase(url, { max: 1, name: "vanishing" });
  const [{ pid } = { pid: 0 }] = await vanishing<{ pid: number }[]>`select pg_backend_pid() as pid`;
  const gone = vanishing.begin(async (tx) => {
    await tx`update held set id = 1`;
    await tx.unsafe("select pg_sleep(30)").simple();
  });
  const ended = gone.then(
    () => "committed",
    (error: { code?: string }) => error.code,
  );
  await sql`update held set id = 1`;
  expect(["25P04", "CONNECTION_CLOSED"]).toContain(String(await ended));
  expect((await sql`select 1 from pg_stat_activity where pid = ${pid}`).length).toBe(0);
  await Promise.all([sql.end(), vanishing.end({ timeout: 0 })]);
});
