import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { connectDatabase } from "../../src/db/connect.ts";
import { migrate, planMigrations } from "../../src/db/migrate.ts";
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

test("a backup, which reads every table until it ends, keeps no process from starting", async () => {
  const url = await createTestDatabase();
  const backup = connectDatabase(url, { max: 1, name: "backup" });
  const sql = connectDatabase(url, { max: 1, name: "starting" });
  await backup.begin(async (tx) => {
    await tx`select from schema_migrations`;
    expect(await migrate(sql)).toEqual([]);
  });
  await Promise.all([sql.end(), backup.end()]);
});

test("a release runs on the schema of a newer one, unless that one says that it can't", async () => {
  const sql = connectDatabase(await createTestDatabase(), { max: 1, name: "older" });
  await sql`insert into schema_migrations (name, hash) values ('9998_expand.sql', '')`;
  expect(await planMigrations(sql)).toEqual({ pending: [], newer: ["9998_expand.sql"] });
  expect(await migrate(sql)).toEqual([]);
  await sql`insert into schema_migrations (name, hash, breaking) values ('9999_contract.sql', '', true)`;
  expect(String(await migrate(sql).catch((error: unknown) => error))).toContain("can't run on it (9999_contract.sql)");
  await sql.end();
});

test("a migration that was changed is refused; a database of before the mark is brought to it", async () => {
  const sql = connectDatabase(await createTestDatabase(), { max: 1, name: "before" });
  await sql`alter table schema_migrations drop column breaking`;
  expect((await planMigrations(sql)).pending).toEqual([]);
  expect(await migrate(sql)).toEqual([]);
  expect((await sql`select breaking from schema_migrations where breaking`).length).toBe(0);
  await sql`update schema_migrations set hash = 'another' where name like '0007%'`;
  const refused = await planMigrations(sql).catch((error: unknown) => error);
  expect(String(refused)).toContain("0007_operations.sql was changed");
  await sql.end();
});

test("from 0008 on, what takes something away that older code may use says so in its first words", () => {
  const folder = join(import.meta.dir, "../../src/db/migrations");
  const takesAway =
    /\b(drop\s+(table|column)|rename\s+(to|column)|set\s+not\s+null|alter\s+column\s+\w+\s+(set\s+data\s+)?type)\b/i;
  const silent = readdirSync(folder)
    .filter((name) => name >= "0008")
    .map((name) => ({ name, body: readFileSync(join(folder, name), "utf8") }))
    .filter(({ body }) => takesAway.test(body.replace(/--.*$/gm, "")) && !body.startsWith("-- breaking"));
  expect(silent.map(({ name }) => name)).toEqual([]);
});
