import type { Queryable } from "./connect.ts";

/** Resolves when Postgres answers. */
export async function pingDatabase(sql: Queryable): Promise<void> {
  await sql`select 1`;
}
