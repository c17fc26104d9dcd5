import { connectSystemd } from "./clients/systemd.ts";
import { ConfigError, loadConfig } from "./config.ts";
import { createDeps } from "./deps.ts";
import { createLog } from "./lib/log.ts";
import { startReef } from "./process.ts";

/** The process: configuration, connections, server, loops, signals; and systemd is told of each, where it started us. */
async function main(): Promise<void> {
  const config = loadConfig(process.env);
  const log = createLog(config.LOG_LEVEL);
  process.on("unhandledRejection", (err) => log.error({ err }, "unhandled rejection"));
  // We would be in an unknown state: end, and be started again.
  process.on("uncaughtException", (err) => {
    log.fatal({ err }, "uncaught exception");
    process.exit(1);
  });
  const systemd = connectSystemd(process.env, log);
  systemd.status("starting: waiting for the database, migrating");
  const deps = createDeps(config, log);
  const reef = await startReef(deps);
  log.info({ port: reef.port, process_id: deps.processId }, "listening");
  systemd.ready(`serving on port ${reef.port}`);
  let stopping = false;
  const stop = () => {
    if (stopping) process.exit(1);
    stopping = true;
    systemd.stopping();
    reef.stop().then(
      () => process.exit(0),
      () => process.exit(1),
    );
  };
  process.on("SIGTERM", stop);
  process.on("SIGINT", stop);
}

main().catch((error: unknown) => {
  if (error instanceof ConfigError) {
    console.error(error.message);
    process.exit(78);
  }
  console.error(`Reef could not start: ${error instanceof Error ? error.message : String(error)}`);
  process.exit(1);
});
