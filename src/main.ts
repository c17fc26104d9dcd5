import { ConfigError, loadConfig } from "./config.ts";
import { createDeps } from "./deps.ts";
import { createLog } from "./lib/log.ts";
import { startReef } from "./process.ts";

/** The process: configuration, connections, server, loops, signals. */
async function main(): Promise<void> {
  const config = loadConfig(process.env);
  const log = createLog(config.LOG_LEVEL);
  process.on("unhandledRejection", (err) => log.error({ err }, "unhandled rejection"));
  process.on("uncaughtException", (err) => {
    const harmless = isCutWhileWriting(err);
    log[harmless ? "warn" : "fatal"](
      { err },
      harmless ? "a database connection was cut while writing" : "uncaught exception",
    );
    if (!harmless) process.exit(1);
  });
  const deps = createDeps(config, log);
  const reef = await startReef(deps);
  log.info({ port: reef.port, process_id: deps.processId }, "listening");
  let stopping = false;
  const stop = () => {
    if (stopping) process.exit(1);
    stopping = true;
    reef.stop().then(
      () => process.exit(0),
      () => process.exit(1),
    );
  };
  process.on("SIGTERM", stop);
  process.on("SIGINT", stop);
}

/**
 * The database client throws from a timer when a connection is cut while it writes (postgres 3.4.9, connection.js: its
 * `socket` is null by then). The query itself is rejected and tried again; anything else leaves us in an unknown state.
 */
function isCutWhileWriting(error: Error): boolean {
  return (
    error instanceof TypeError &&
    error.message.includes("socket.write") &&
    (error.stack?.includes("postgres/src/connection.js") ?? false)
  );
}

main().catch((error: unknown) => {
  if (error instanceof ConfigError) {
    console.error(error.message);
    process.exit(78);
  }
  console.error(`Reef could not start: ${error instanceof Error ? error.message : String(error)}`);
  process.exit(1);
});
