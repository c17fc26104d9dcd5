import type { Sql } from "./connect.ts";

/**
 * Runs `work` while holding a lock that one process at a time can have; null when somebody else has it. The lock lives
 * in a connection of its own and ends with it, so a dead process never keeps it.
 */
export async function withAdvisoryLock<T>(sql: Sql, name: string, work: () => Promise<T>): Promise<T | null> {
  const connection = await sql.reserve();
  try {
    const [row] = await connection<
      { locked: boolean }[]
    >`select pg_try_advisory_lock(hashtext('reef'), hashtext(${name})) as locked`;
    if (!row?.locked) return null;
    try {
      return await work();
    } finally {
      await connection`select pg_advisory_unlock(hashtext('reef'), hashtext(${name}))`.catch(() => undefined);
    }
  } finally {
    connection.release();
  }
}
