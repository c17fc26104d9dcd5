import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Queryable, Sql } from "./connect.ts";
import { limitTransactions, setTransactionLimit, TRANSACTION_MS } from "./timeouts.ts";

const FOLDER = join(import.meta.dir, "migrations");
/** Any constant will do; all processes that migrate one database must use the same. */
const LOCK = 7_033_001;
/** Longer than a request holds a table, shorter than one waits for it (connect.ts). */
const LOCK_WAIT_MS = 10_000;
const LOCK_NOT_AVAILABLE = "55P03";

/** The first words of a migration that releases before it can't live with. Every other one only adds. */
const BREAKING = /^-- breaking\b/;

interface Migration {
  name: string;
  body: string;
  hash: string;
  breaking: boolean;
}

/** What stands between the database and this code. */
export interface MigrationPlan {
  pending: Migration[];
  /** Of a newer release that was here; none of them is breaking. */
  newer: string[];
}

/**
 * Brings the database to the newest schema: each `migrations/NNNN_name.sql` once, in order, in a transaction of its
 * own that also records it. Safe to run from several processes at once. Returns the names it applied.
 * Throws as `planMigrations` does. A database that is newer is left as it is: a release that was returned to runs on it.
 */
export async function migrate(sql: Sql): Promise<string[]> {
  const connection = await sql.reserve();
  try {
    // The pool's limits are for requests; here one process waits for another, and a migration may take its time.
    await connection`set statement_timeout = 0`;
    await connection`set idle_in_transaction_session_timeout = 0`;
    await setTransactionLimit(connection, 0, false);
    await connection`select pg_advisory_lock(${LOCK})`;
    await connection`create table if not exists schema_migrations (
      name text primary key, hash text not null, applied_at timestamptz not null default now())`;
    // Only where it is missing: asked for, it waits for whoever reads the table, and a backup reads it until it ends.
    const [mark] = await connection`
      select 1 from pg_attribute where attrelid = 'schema_migrations'::regclass and attname = 'breaking' and not attisdropped`;
    if (!mark)
      await connection`alter table schema_migrations add column if not exists breaking boolean not null default false`;
    // While it waits for a table all requests for that table wait behind it.
    await connection.unsafe(`set lock_timeout = ${LOCK_WAIT_MS}`);
    const { pending } = await planMigrations(connection);
    for (const migration of pending) await applyOne(connection, migration);
    await limitTransactions(connection);
    return pending.map(({ name }) => name);
  } finally {
    for (const undo of [
      connection`select pg_advisory_unlock(${LOCK})`,
      connection`reset statement_timeout`,
      connection`reset lock_timeout`,
      connection`reset idle_in_transaction_session_timeout`,
      setTransactionLimit(connection, TRANSACTION_MS, false),
    ])
      await undo.catch(() => undefined);
    connection.release();
  }
}

/**
 * Which migrations are to be applied; only reads. Throws when one that was applied has been changed since, or when the
 * database has one that this code does not know and that says of itself that older code can't live with it.
 */
export async function planMigrations(sql: Queryable): Promise<MigrationPlan> {
  const known = readMigrations();
  const [table] = await sql<{ exists: boolean }[]>`select to_regclass('schema_migrations') is not null as exists`;
  // As JSON: a database of before has no column `breaking`.
  const rows = table?.exists
    ? await sql<{ name: string; hash: string; breaking: boolean }[]>`
        select name, hash, coalesce((to_jsonb(m) ->> 'breaking')::boolean, false) as breaking
        from schema_migrations m order by name`
    : [];
  const unknown = rows.filter((row) => !known.some(({ name }) => name === row.name));
  const breaking = unknown.filter((row) => row.breaking).map(({ name }) => name);
  if (breaking.length > 0)
    throw new Error(
      `The database is newer than this release, which can't run on it (${breaking.join(", ")}); deploy the newer release.`,
    );
  const applied = new Map(rows.map((row) => [row.name, row.hash]));
  const changed = known.find(({ name, hash }) => applied.has(name) && applied.get(name) !== hash);
  if (changed) throw new Error(`Migration ${changed.name} was changed after it was applied; write a new one instead.`);
  return { pending: known.filter(({ name }) => !applied.has(name)), newer: unknown.map(({ name }) => name) };
}

function readMigrations(): Migration[] {
  const names = readdirSync(FOLDER).filter((name) => /^\d{4}_.+\.sql$/.test(name));
  return names.sort().map((name) => {
    const body = readFileSync(join(FOLDER, name), "utf8");
    return { name, body, hash: createHash("sha256").update(body).digest("hex"), breaking: BREAKING.test(body) };
  });
}

async function applyOne(connection: Queryable, { name, hash, breaking, body }: Migration): Promise<void> {
  const record = `insert into schema_migrations (name, hash, breaking) values ('${name}', '${hash}', ${breaking})`;
  try {
    // One simple query: a migration may hold many statements, and its number goes in first.
    await connection.unsafe(`begin; ${record}; ${body}; commit;`).simple();
  } catch (error) {
    await connection.unsafe("rollback").simple();
    if ((error as { code?: string }).code === LOCK_NOT_AVAILABLE)
      throw new Error(`${name} waits for a table that somebody holds, maybe a backup; try again when that has ended.`);
    throw error;
  }
}
