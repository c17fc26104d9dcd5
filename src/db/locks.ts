import type { Sql } from "./connect.ts";
import { setTransactionLimit } from "./timeouts.ts";

const PING_MS = 1_000;
/** A holder that is silent this long (stopped, or cut off) loses the lock: Postgres ends its transaction. */
const SILENT_MS = 5_000;
/** The longest work under a lock, unless the caller says another; who goes on beyond that has lost it and begins again. */
const WORK_MS = 600_000;

/** A lock that is held now, as far as anybody can know. */
export interface HeldLock {
  /** Aborts when the lock is lost. */
  signal: AbortSignal;
  /** Asks Postgres; rejects when the lock is lost. Call it right before what only the holder may do. */
  requireHeld(): Promise<void>;
}

/**
 * Runs `work` while holding a lock that one process at a time can have; null when somebody else has it. The lock lives
 * in a transaction of its own and ends with its connection, so neither a dead process nor one that stands still keeps
 * it. Rejects when the lock was lost, after `work` has ended.
 */
export async function withAdvisoryLock<T>(
  sql: Sql,
  name: string,
  work: (lock: HeldLock) => Promise<T>,
  { workMs = WORK_MS }: { workMs?: number } = {},
): Promise<T | null> {
  const lost = new AbortController();
  let working: Promise<T> | undefined;
  let pinging: ReturnType<typeof setInterval> | undefined;
  try {
    const outcome = await sql.begin(async (tx) => {
      const [row] = await tx<
        { locked: boolean }[]
      >`select pg_try_advisory_xact_lock(hashtext('reef'), hashtext(${name})) as locked,
        set_config('idle_in_transaction_session_timeout', ${String(SILENT_MS)}, true)`;
      if (!row?.locked) return null;
      await setTransactionLimit(tx, workMs, true);
      const ping = async () => void (await tx`select 1`);
      pinging = setInterval(() => void ping().catch(() => lost.abort()), PING_MS);
      working = work({ signal: lost.signal, requireHeld: ping });
      return await working;
    });
    return outcome as T | null;
  } catch (error) {
    lost.abort();
    // The transaction ends at once when its connection does; what it was held for must end too.
    await working?.catch(() => undefined);
    throw error;
  } finally {
    clearInterval(pinging);
  }
}
