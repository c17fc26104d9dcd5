import { preferNewest } from "./clients/portGroup.ts";
import { registerGateway } from "./db/gateways.ts";
import { migrate } from "./db/migrate.ts";
import { listen, type Notice } from "./db/notify.ts";
import type { Deps } from "./deps.ts";
import type { ConnectionInfo } from "./http/middleware.ts";
import { isUnavailable, renderOutside } from "./http/problem.ts";
import { AppError } from "./lib/errors.ts";
import { newId } from "./lib/ids.ts";
import { startLoop } from "./lib/loop.ts";
import { sleep, withDeadline } from "./lib/retry.ts";
import { createChatSockets, type ChatSockets } from "./routes/chat.ts";
import { createServer, type HttpServer } from "./server.ts";
import { startAbandonedTurns } from "./services/abandonedTurns.ts";
import { startCanaryWatch } from "./services/canary.ts";
import { ChatHub } from "./services/chatHub.ts";
import { startMailSender } from "./services/mailSender.ts";
import { startDeletions } from "./services/deletion.ts";
import { startGatewayBeat } from "./services/gatewayBeat.ts";
import { startMonitor } from "./services/monitor.ts";
import { createDatabaseWatch } from "./services/databaseWatch.ts";
import { startPlanKeeper } from "./services/planKeeper.ts";
import { startBillingReconciler } from "./services/reconcileBilling.ts";
import { startReconciler } from "./services/reconciler.ts";
import { startStripeInbox } from "./services/stripeInbox.ts";
import { TurnEngine } from "./services/turnEngine.ts";
import { planChanged, startUsageSweeper } from "./services/usage.ts";
import { EVERYONE } from "./services/usageCache.ts";

const SWEEP_MS = 5_000;
const RESYNC_MS = 30_000;
const DRAIN_MS = 8_000;
/** What hangs beyond this is left behind: its turns run out of their leases. */
const LOOPS_STOP_MS = 8_700;
/** All of a stop, whatever hangs: less than systemd (reef-api@.service) and the launcher wait before they kill. */
const STOP_MS = 9_500;
/** Who is connected, or on the way here while new connections go to others, sends a request within this time. */
const LAST_REQUESTS_MS = 1_000;
const DATABASE_WAIT_MS = 60_000;
/** A connection without traffic is closed after this. */
const IDLE_SECONDS = 60;

/** A running Reef: its port, and the orderly way to end it. */
export interface RunningReef {
  port: number;
  stop(): Promise<void>;
}

/** Migrates, starts the loops, listens. Waits for a database that is not up yet. */
export async function startReef(deps: Deps): Promise<RunningReef> {
  const { config, log } = deps;
  await waitForDatabase(deps);
  await deps.traces.ready().catch(() => undefined);
  if (config.ROLE !== "front")
    await registerGateway(deps.sql, {
      id: config.GATEWAY_ID,
      workingSet: config.GATEWAY_WORKING_SET,
      filesUrl: config.GATEWAY_FILES_URL ?? null,
      folder: config.OPENCLAW_GATEWAY_DIR,
    });
  let draining = false;
  const parts = startParts(deps);
  const sockets = createChatSockets(deps, parts.hub, parts.engine);
  const http = createServer(deps, parts.hub, parts.engine, () => draining);
  const unlisten = await listen(deps.sql, hearNotices(deps, parts), () => catchUp(parts));
  parts.watch.begin();
  const server = serve(deps, http, sockets);
  if (config.PROCESSES > 1) preferNewest(config.PROCESSES, log);
  const sweeper = setInterval(() => sockets.sweep(), Math.min(SWEEP_MS, config.CHAT_PING_MS));

  return {
    port: server.port ?? config.PORT,
    async stop() {
      draining = true;
      const endsAt = performance.now() + STOP_MS;
      log.info("shutting down");
      sockets.closeAll("restart");
      // Bun closes a connection that has not asked anything yet, and the kernel resets one that was not accepted.
      const listening = sleep(config.PROCESSES > 1 ? LAST_REQUESTS_MS : 0).then(() => server.stop(false));
      const answered = withDeadline(listening, DRAIN_MS, "open requests").catch(() => server.stop(true));
      clearInterval(sweeper);
      const { engine, hub: _, ...others } = parts;
      const loops = Promise.all([
        engine.stop(DRAIN_MS),
        sockets.stop(DRAIN_MS),
        ...Object.values(others).map((part) => part.stop()),
      ]);
      await withDeadline(loops, LOOPS_STOP_MS, "the loops").catch((err: unknown) =>
        log.warn({ err }, "did not stop in time"),
      );
      await answered;
      const unlistened = withDeadline(unlisten(), 1000, "unlisten").catch(() => undefined);
      const closed = unlistened.then(() => deps.close());
      await withDeadline(closed, endsAt - performance.now(), "closing").catch((err: unknown) =>
        log.warn({ err }, "did not close in time"),
      );
    },
  };
}

/** All that works by itself, beside the requests. */
function startParts(deps: Deps) {
  const hub = new ChatHub(deps);
  return {
    hub,
    engine: new TurnEngine(deps, hub),
    reconciler: startReconciler(deps),
    gatewayBeat: startGatewayBeat(deps),
    abandonedTurns: startAbandonedTurns(deps, hub),
    monitor: startMonitor(deps),
    canary: startCanaryWatch(deps),
    mails: startMailSender(deps),
    deletions: startDeletions(deps),
    reservations: startUsageSweeper(deps),
    stripeInbox: startStripeInbox(deps),
    plans: startPlanKeeper(deps),
    billing: startBillingReconciler(deps),
    watch: createDatabaseWatch(deps),
    resync: startLoop({
      name: "chat resync",
      run: () => hub.resync(),
      debounceMs: 100,
      maxWaitMs: 1000,
      resyncMs: RESYNC_MS,
      backoffMs: 500,
      log: deps.log,
    }),
  };
}
type Parts = ReturnType<typeof startParts>;

/** Whom a notice of the database wakes. */
function hearNotices(deps: Deps, parts: Parts): (notice: Notice) => void {
  const { config, log } = deps;
  const { hub, engine, reconciler } = parts;
  const act: Record<Notice["kind"], (id: string) => void> = {
    turn: () => engine.wake(),
    stop: () => {
      engine.wakeStops();
      parts.abandonedTurns.wake();
    },
    deletion: () => parts.deletions.wake(),
    mail: () => parts.mails.wake(),
    stripe: () => parts.stripeInbox.wake(),
    plan: (id) => {
      // Devices that are told ask for more at once: they are not to be refused by the old plan.
      void planChanged(deps, id).then(() => hub.planChanged(id));
      if (id === EVERYONE) parts.plans.lookAtAll();
      else parts.plans.heard(id);
    },
    usage: (id) => void hub.usageChanged(id),
    session: (id) => hub.sessionRevoked(id),
    beat: (id) => parts.watch.heard(id),
    gateway: (id) => id === config.GATEWAY_ID && reconciler.wake(),
    message: (id) => {
      const [assistantId = "", seq = "0"] = id.split(":");
      hub.messageStored(assistantId, Number(seq));
    },
    assistant: (id) => {
      hub.assistantChanged(id);
      engine.wake();
    },
  };
  return ({ kind, id }) => {
    // A throw would reach the database client, in the midst of what it does.
    try {
      act[kind](id);
    } catch (err) {
      log.error({ err, notice: kind }, "a notice could not be acted on");
    }
  };
}

/** What was sent while nobody listened is lost: read everything. */
function catchUp({ engine, reconciler, deletions, resync, mails, stripeInbox, plans }: Parts): void {
  engine.wake();
  engine.wakeStops();
  reconciler.wake();
  deletions.wake();
  resync.wake();
  mails.wake();
  stripeInbox.wake();
  plans.lookAtAll();
}

function serve({ config, log }: Deps, http: HttpServer, sockets: ChatSockets) {
  return Bun.serve({
    hostname: config.HOST,
    port: config.PORT,
    reusePort: config.PROCESSES > 1,
    idleTimeout: IDLE_SECONDS,
    // The application refuses what is too large (limitBody), with its own answer; Bun's has none.
    maxRequestBodySize: Number.MAX_SAFE_INTEGER,
    development: false,
    async fetch(request, server) {
      if (URL.parse(request.url) === null) return renderOutside(badHost());
      const upgraded = await sockets.upgrade(request, server);
      if (upgraded !== null) return upgraded;
      return http.app.fetch(request, {
        ip: server.requestIP(request)?.address ?? null,
        allowQuiet: (quiet) => server.timeout(request, quiet ? 0 : IDLE_SECONDS),
      } satisfies ConnectionInfo);
    },
    error(err) {
      const requestId = newId();
      log.error({ err, request_id: requestId }, "request failed in the server");
      return renderOutside(new AppError("internal_error"), requestId);
    },
    websocket: sockets.websocket,
  });
}

function badHost(): AppError {
  return new AppError("validation_failed", { details: [{ path: "Host", message: "must be a host name" }] });
}

async function waitForDatabase(deps: Deps): Promise<void> {
  const until = Date.now() + DATABASE_WAIT_MS;
  for (let tries = 0; ; tries++) {
    try {
      const applied = await migrate(deps.sql);
      if (applied.length > 0) deps.log.info({ applied }, "migrated");
      return;
    } catch (error) {
      if (!isUnavailable(error) || Date.now() > until) throw error;
      const { code } = error as { code?: string };
      if (tries % 10 === 0) deps.log.warn({ code }, "waiting for the database");
      await sleep(500);
    }
  }
}
