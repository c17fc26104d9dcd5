import type { Queryable } from "./connect.ts";

/*
 * Every statement has 30 seconds and every silent transaction 5 (connect.ts). Neither runs out when a client vanishes
 * between the parts of one statement: Postgres waits for the rest, with all locks (until TCP gives up, and behind a proxy
 * for ever). From version 17 on `transaction_timeout` ends that; older ones do not know it.
 */

/** Longer than a statement may take: whoever has not ended by then has vanished. */
export const TRANSACTION_MS = 40_000;

/** Bounds the transactions of all sessions that are opened from now on; nothing where we may not, or Postgres can't. */
export async function limitTransactions(sql: Queryable): Promise<void> {
  await sql.unsafe(`do $$ begin
    if current_setting('transaction_timeout', true) is not null then
      execute format('alter database %I set transaction_timeout = ${TRANSACTION_MS}', current_database());
    end if;
  exception when insufficient_privilege then null;
  end $$`);
}

/**
 * For a session (`local` false) or a transaction whose work rightly takes longer; 0 is without an end. Within a
 * transaction Postgres takes no other number while one counts: it has to be switched off first.
 */
export async function setTransactionLimit(sql: Queryable, ms: number, local: boolean): Promise<void> {
  for (const limit of local && ms > 0 ? [0, ms] : [ms])
    await sql`
      select set_config('transaction_timeout', ${String(limit)}, ${local})
      where current_setting('transaction_timeout', true) is not null`;
}
