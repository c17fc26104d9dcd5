import { connect, type Socket } from "node:net";
import postgres from "postgres";
import { backoffDelay } from "../lib/retry.ts";

export type Sql = postgres.Sql;
/** A pool or a transaction: query functions take either. */
export type Queryable = postgres.ISql;

const RECONNECT_BASE_MS = 20;
const RECONNECT_CAP_MS = 1_000;

interface DatabaseOptions {
  max: number;
  name: string;
  /** Takes the sockets, so that all can be severed when they are known to be dead (services/databaseWatch.ts). */
  sockets?: Set<Socket>;
}

/** Opens a pool. Column names are snake_case in SQL and camelCase here; keys inside jsonb stay as they are. */
export function connectDatabase(url: string, options: DatabaseOptions): Sql {
  const settings = {
    socket: (target: Target) => openSocket(target, options.sockets),
    max: options.max,
    connect_timeout: 10,
    idle_timeout: 0,
    // The library's own counts the failures of all connections together: one cut of a pool and it waits 20 seconds.
    backoff: (failures: number) => backoffDelay(failures, RECONNECT_BASE_MS, RECONNECT_CAP_MS) / 1000,
    connection: {
      application_name: options.name,
      TimeZone: "UTC",
      statement_timeout: 30_000,
      // A process that stands still in a transaction must not keep its locks from the others.
      idle_in_transaction_session_timeout: 5_000,
      // A peer that vanished from the network is noticed after 25 seconds instead of two hours (see timeouts.ts, too).
      tcp_keepalives_idle: 10,
      tcp_keepalives_interval: 5,
      tcp_keepalives_count: 3,
    },
    transform: { column: { from: postgres.toCamel, to: postgres.fromCamel } },
    types: { bigint: { to: 20, from: [20], parse: Number, serialize: String } },
    onnotice: () => undefined,
  };
  return postgres(url, settings);
}

interface Target {
  host: string[];
  port: number[];
  path: string | false;
}

/** As the library would, but known to us. It writes at once; the socket keeps that until it is connected. */
function openSocket({ host, port, path }: Target, sockets = new Set<Socket>()): Socket {
  for (const socket of sockets) if (socket.destroyed) sockets.delete(socket);
  const socket = path ? connect(path) : connect(port[0]!, host[0]!);
  sockets.add(socket);
  return Object.assign(socket, { host: host[0], port: port[0] });
}
