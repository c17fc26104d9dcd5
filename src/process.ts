import { registerGateway } from "./db/gateways.ts";
import { migrate } from "./db/migrate.ts";
import { listen, type Notice } from "./db/notify.ts";
import type { Deps } from "./deps.ts";
import { startLoop } from "./lib/loop.ts";
import { sleep, withDeadline } from "./lib/retry.ts";
import { createChatSockets } from "./routes/chat.ts";
import { createServer } from "./server.ts";
import { createChatHub } from "./services/chatHub.ts";
import { startMonitor } from "./services/monitor.ts";
import { startReconciler } from "./services/reconciler.ts";
import { startTurnEngine } from "./services/turnEngine.ts";

const SWEEP_MS = 5_000;
const RESYNC_MS = 30_000;
const DRAIN_MS = 8_000;
const DATABASE_WAIT_MS = 60_000;

/** A running Reef: its port, and the orderly way to end it. */
export interface RunningReef {
  port: number;
  stop(): Promise<void>;
}

/** Migrates, starts the loops, listens. Waits for a database that is not up yet. */
export async function startReef(deps: Deps): Promise<RunningReef> {
  const { config, log } = deps;
  await waitForDatabase(deps);
  await registerGateway(deps.sql, { id: config.GATEWAY_ID, workingSet: config.GATEWAY_WORKING_SET });
  let draining = false;
  const hub = createChatHub(deps);
  const sockets = createChatSockets(deps, hub);
  const http = createServer(deps, hub, () => draining);
  const engine = startTurnEngine(deps, hub);
  const reconciler = startReconciler(deps);
  const monitor = startMonitor(deps);

  const resync = startLoop({
    name: "chat resync",
    run: () => hub.resync(),
    debounceMs: 100,
    maxWaitMs: 1000,
    resyncMs: RESYNC_MS,
    backoffMs: 500,
    log,
  });

  const hear = (notice: Notice) => {
    if (notice.kind === "turn") engine.wake();
    else if (notice.kind === "stop") engine.wakeStops();
    else if (notice.kind === "session") hub.sessionRevoked(notice.id);
    else if (notice.kind === "message") {
      const [assistantId = "", seq = "0"] = notice.id.split(":");
      hub.messageStored(assistantId, Number(seq));
    } else {
      hub.assistantChanged(notice.id);
      engine.wake();
      reconciler.wake();
    }
  };
  // What was sent while nobody listened is lost: read everything.
  const catchUp = () => {
    engine.wakeStops();
    reconciler.wake();
    resync.wake();
  };
  const unlisten = await listen(deps.sql, hear, catchUp);
  const server = Bun.serve({
    hostname: config.HOST,
    port: config.PORT,
    reusePort: false,
    idleTimeout: 60,
    maxRequestBodySize: 26 * 1024 * 1024,
    async fetch(request, server) {
      const upgraded = await sockets.upgrade(request, server);
      if (upgraded !== null) return upgraded;
      return http.app.fetch(request, { ip: server.requestIP(request)?.address ?? null });
    },
    websocket: sockets.websocket,
  });
  const sweeper = setInterval(() => sockets.sweep(), Math.min(SWEEP_MS, config.CHAT_PING_MS));

  return {
    port: server.port ?? config.PORT,
    async stop() {
      draining = true;
      log.info("shutting down");
      const listening = server.stop(false);
      sockets.closeAll("restart");
      clearInterval(sweeper);
      await Promise.all([engine.stop(DRAIN_MS), reconciler.stop(), resync.stop(), monitor.stop()]);
      await withDeadline(listening, 1000, "open requests").catch(() => server.stop(true));
      await withDeadline(unlisten(), 1000, "unlisten").catch(() => undefined);
      await deps.close();
    },
  };
}

async function waitForDatabase(deps: Deps): Promise<void> {
  const until = Date.now() + DATABASE_WAIT_MS;
  for (let tries = 0; ; tries++) {
    try {
      const applied = await migrate(deps.sql);
      if (applied.length > 0) deps.log.info({ applied }, "migrated");
      return;
    } catch (error) {
      const code = (error as { code?: string }).code ?? "";
      const away = /^(ECONN|CONNECT|57P0|CONNECTION_)/.test(code);
      if (!away || Date.now() > until) throw error;
      if (tries % 10 === 0) deps.log.warn({ code }, "waiting for the database");
      await sleep(500);
    }
  }
}
