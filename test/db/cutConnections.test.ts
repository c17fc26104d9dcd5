import { afterAll, beforeAll, expect, test } from "bun:test";
import { connectDatabase, type Sql } from "../../src/db/connect.ts";
import { withAdvisoryLock } from "../../src/db/locks.ts";
import { createTestDatabase, until } from "../harness.ts";

let url: string;
let cutter: Sql;
beforeAll(async () => {
  url = await createTestDatabase();
  cutter = connectDatabase(url, { max: 1, name: "cutter" });
});
afterAll(() => cutter.end());

const cut = (name: string) =>
  cutter`select pg_terminate_backend(pid) from pg_stat_activity where application_name = ${name} and datname = current_database()`;
const codeOf = (error: unknown) => (error as { code?: string }).code;
const rejection = (work: Promise<unknown>) =>
  work.then(
    () => "resolved",
    (error: unknown) => codeOf(error),
  );

test("a connection that is cut inside a transaction rejects it and is as good as new afterwards", async () => {
  const sql = connectDatabase(url, { max: 2, name: "pool" });
  for (let round = 0; round < 3; round++) {
    const outcome = await rejection(
      sql.begin(async (tx) => {
        await tx`select 1`;
        await cut("pool");
        await until("the other connections are cut too", async () => (await openConnections("pool")) === 0);
        await tx`select 2`;
      }),
    );
    expect(outcome).toBe("CONNECTION_CLOSED");
    await untilBothWork(sql);
  }
  await sql.end();
});

test("a statement of a transaction whose connection was cut never reaches somebody else's transaction", async () => {
  const sql = connectDatabase(url, { max: 1, name: "single" });
  await sql`create table if not exists notes (text text)`;
  const late = Promise.withResolvers<void>();
  const stale = Promise.withResolvers<unknown>();
  const first = sql.begin(async (tx) => {
    await tx`select 1`;
    await cut("single");
    await late.promise;
    stale.resolve(await rejection(tx`insert into notes values ('of the lost one')`));
  });
  expect(await rejection(first)).toBe("CONNECTION_CLOSED");
  await sql.begin(async (tx) => {
    await tx`insert into notes values ('of the second')`;
    late.resolve();
    expect(await stale.promise).toBe("CONNECTION_CLOSED");
    await tx`select 1`;
  });
  expect((await sql`select text from notes`).map((row) => row["text"])).toEqual(["of the second"]);
  await sql.end();
});

test("a lock whose connection is cut ends: its holder is told, and somebody else gets it", async () => {
  const sql = connectDatabase(url, { max: 3, name: "holder" });
  let ended = false;
  const held = withAdvisoryLock(sql, "one", async (lock) => {
    await cut("holder");
    await until("the holder is told", () => lock.signal.aborted);
    expect(await rejection(lock.requireHeld())).toBe("CONNECTION_CLOSED");
    ended = true;
  });
  expect(await rejection(held)).toBe("CONNECTION_CLOSED");
  expect(ended).toBe(true);
  expect(await withAdvisoryLock(sql, "one", async () => "next")).toBe("next");
  await sql.end();
});

test("one at a time holds a lock; it is free again when the work fails", async () => {
  const sql = connectDatabase(url, { max: 3, name: "two" });
  await withAdvisoryLock(sql, "two", async (lock) => {
    await lock.requireHeld();
    expect(await withAdvisoryLock(sql, "two", async () => "second")).toBeNull();
  });
  const failing = withAdvisoryLock(sql, "two", () => Promise.reject(Object.assign(new Error("no"), { code: "no" })));
  expect(await rejection(failing)).toBe("no");
  expect(await withAdvisoryLock(sql, "two", async () => "third")).toBe("third");
  await sql.end();
});

test("locks that fail during an outage cost the pool no connection", async () => {
  const away = connectDatabase(url.replace(/:\d+\//, ":1/"), { max: 1, name: "away" });
  for (let i = 0; i < 5; i++) expect(await rejection(withAdvisoryLock(away, "x", async () => 1))).not.toBe("resolved");
  await away.end();
  const sql = connectDatabase(url, { max: 2, name: "outage" });
  for (let i = 0; i < 5; i++) {
    await rejection(withAdvisoryLock(sql, "x", () => cut("outage")));
    await untilBothWork(sql);
  }
  await sql.end();
});

/** Both connections of the pool answer at once; what was just cut may be refused for a moment, but nothing hangs. */
async function untilBothWork(sql: Sql): Promise<void> {
  const both = async () => {
    const rows = await Promise.all([1, 2].map(() => sql`select pg_backend_pid() as pid, pg_sleep(0.05)`));
    return new Set(rows.map(([row]) => row!["pid"])).size === 2;
  };
  await until("both connections work at once", () => both().catch(() => false), 5_000);
}

async function openConnections(name: string): Promise<number> {
  const [row] = await cutter<{ n: number }[]>`
    select count(*)::int as n from pg_stat_activity where application_name = ${name} and datname = current_database()`;
  return row!.n;
}
