import type { Sql } from "./connect.ts";
import { setTransactionLimit } from "./timeouts.ts";

/** What the rows were at one moment: `id` lets other sessions (pg_dump) see the very same. */
export interface Snapshot {
  id: string;
  /** The server's, as `server_version_num`: 150020 for 15.20. */
  version: number;
  /** Name of the newest migration. */
  schema: string;
  /** Rows by table. */
  rows: Record<string, number>;
}

/** Counts every table, and holds the snapshot until `use` ends. Blocks nobody; the lock that others wait for is none. */
export async function withSnapshot<T>(sql: Sql, use: (snapshot: Snapshot) => Promise<T>): Promise<T> {
  const outcome = await sql.begin("isolation level repeatable read read only", async (tx) => {
    await setTransactionLimit(tx, 0, true);
    await tx`
      select set_config('statement_timeout', '0', true), set_config('idle_in_transaction_session_timeout', '0', true)`;
    const [about] = await tx<{ id: string; version: string; schema: string }[]>`
      select pg_export_snapshot() as id, current_setting('server_version_num') as version,
        (select max(name) from schema_migrations) as schema`;
    const { id, version, schema } = about!;
    return use({ id, schema, version: Number(version), rows: await countRows(tx) });
  });
  return outcome as T;
}

/** Rows of each table of the schema "public". */
export async function countRows(sql: Pick<Sql, "unsafe">): Promise<Record<string, number>> {
  const tables = await sql.unsafe<{ name: string; quoted: string }[]>(
    "select tablename as name, quote_ident(tablename) as quoted from pg_tables where schemaname = 'public' order by 1",
  );
  const counts: Record<string, number> = {};
  for (const { name, quoted } of tables) {
    const [row] = await sql.unsafe<{ count: string }[]>(`select count(*)::text as count from public.${quoted}`);
    counts[name] = Number(row!.count);
  }
  return counts;
}
