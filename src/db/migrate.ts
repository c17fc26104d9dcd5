import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Queryable, Sql } from "./connect.ts";
import { limitTransactions, setTransactionLimit, TRANSACTION_MS } from "./timeouts.ts";

const FOLDER = join(import.meta.dir, "migrations");
/** Any constant will do; all processes that migrate one database must use the same. */
const LOCK = 7_033_001;

/**
 * Brings the database to the newest schema: each `migrations/NNNN_name.sql` once, in order, in a transaction of its
 * own that also records it. Safe to run from several processes at once. Returns the names it applied.
 * Throws when a migration that was applied has been changed since, or when the database is newer than this code.
 */
export async function migrate(sql: Sql): Promise<string[]> {
  const files = readdirSync(FOLDER)
    .filter((name) => /^\d{4}_.+\.sql$/.test(name))
    .sort();
  const connection = await sql.reserve();
  try {
    // The pool's limits are for requests; here one process waits for another, and a migration may take its time.
    await connection`set statement_timeout = 0`;
    await connection`set idle_in_transaction_session_timeout = 0`;
    await setTransactionLimit(connection, 0, false);
    await connection`select pg_advisory_lock(${LOCK})`;
    await connection`create table if not exists schema_migrations (
      name text primary key, hash text not null, applied_at timestamptz not null default now())`;
    const applied = new Map(
      (await connection<{ name: string; hash: string }[]>`select name, hash from schema_migrations`).map((row) => [
        row.name,
        row.hash,
      ]),
    );
    const unknown = [...applied.keys()].filter((name) => !files.includes(name));
    if (unknown.length > 0)
      throw new Error(
        `The database is newer than this release (it has ${unknown.join(", ")}); deploy the newer release.`,
      );
    const done: string[] = [];
    for (const name of files) {
      const body = readFileSync(join(FOLDER, name), "utf8");
      const hash = createHash("sha256").update(body).digest("hex");
      if (applied.has(name)) {
        if (applied.get(name) !== hash)
          throw new Error(`Migration ${name} was changed after it was applied; write a new one instead.`);
        continue;
      }
      await applyOne(connection, name, hash, body);
      done.push(name);
    }
    await limitTransactions(connection);
    return done;
  } finally {
    for (const undo of [
      connection`select pg_advisory_unlock(${LOCK})`,
      connection`reset statement_timeout`,
      connection`reset idle_in_transaction_session_timeout`,
      setTransactionLimit(connection, TRANSACTION_MS, false),
    ])
      await undo.catch(() => undefined);
    connection.release();
  }
}

async function applyOne(connection: Queryable, name: string, hash: string, body: string): Promise<void> {
  try {
    // One simple query: a migration may hold many statements, and its number goes in first.
    await connection
      .unsafe(`begin; insert into schema_migrations (name, hash) values ('${name}', '${hash}'); ${body}; commit;`)
      .simple();
  } catch (error) {
    await connection.unsafe("rollback").simple();
    throw error;
  }
}
