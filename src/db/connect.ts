import postgres from "postgres";
import { backoffDelay } from "../lib/retry.ts";

export type Sql = postgres.Sql;
/** A pool or a transaction: query functions take either. */
export type Queryable = postgres.ISql;

const RECONNECT_BASE_MS = 20;
const RECONNECT_CAP_MS = 1_000;

/** Opens a pool. Column names are snake_case in SQL and camelCase here; keys inside jsonb stay as they are. */
export function connectDatabase(url: string, options: { max: number; name: string }): Sql {
  return postgres(url, {
    max: options.max,
    connect_timeout: 10,
    idle_timeout: 0,
    // The library's own counts the failures of all connections together: one cut of a pool and it waits 20 seconds.
    backoff: (failures) => backoffDelay(failures, RECONNECT_BASE_MS, RECONNECT_CAP_MS) / 1000,
    connection: {
      application_name: options.name,
      TimeZone: "UTC",
      statement_timeout: 30_000,
      // A process that stands still in a transaction must not keep its locks from the others.
      idle_in_transaction_session_timeout: 5_000,
    },
    transform: { column: { from: postgres.toCamel, to: postgres.fromCamel } },
    types: { bigint: { to: 20, from: [20], parse: Number, serialize: String } },
    onnotice: () => undefined,
  });
}
