import { insertAudit } from "../db/audit.ts";
import { endExport, insertExport, lockExports, renewExport } from "../db/exports.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import { zip } from "../lib/zip.ts";
import type { Identity } from "./accessTokens.ts";
import { listExportFiles, readExportHead } from "./exportFiles.ts";
import type { Origin } from "./sessions.ts";

const PER_HOUR = 5;
/** Written at a time by one process: more would only slow the chats down. */
const AT_ONCE = 4;
/** An export whose process died is over for the next one after this. */
const LEASE_SECONDS = 30;
/** Also how soon an export ends with the session that asked for it. */
const RENEW_MS = 1_000;

type ExportDeps = Pick<Deps, "sql" | "workspaces" | "config" | "log" | "onClose">;

/** Writes people's data into ZIP streams. */
export function createExporter(deps: ExportDeps) {
  const running = new Set<() => Promise<void>>();
  deps.onClose("exports", 1000, () => Promise.all([...running].map((giveUp) => giveUp())));
  return {
    /**
     * Begins an export: one per person at a time, a few an hour. Reading starts with the first byte that is asked for
     * and follows the reader; whoever hangs up ends it. What fails in the middle breaks the stream. Throws
     * `export_running`, `too_many_attempts`, `service_unavailable`, each with `retry_after`.
     */
    async begin(actor: Identity, origin: Origin): Promise<{ filename: string; body: ReadableStream<Uint8Array> }> {
      if (running.size >= AT_ONCE) throw new AppError("service_unavailable", { retry_after: 30 });
      const id = newId();
      const outcome = await deps.sql.begin((sql) => register(sql, actor, origin, id));
      if (outcome) throw outcome;
      const log = deps.log.child({ request_id: origin.requestId, user_id: actor.userId });
      const lease = leaseOf({ ...deps, log }, id, actor);
      const head = await readExportHead(deps, actor.userId).catch(async (error: unknown) => {
        await lease.end();
        throw error;
      });
      const aborter = new AbortController();
      const chunks = zip(listExportFiles(deps, head), aborter.signal);
      const body = streamOf({ ...deps, log }, chunks, aborter, running, lease);
      return { filename: `reef-export-${head.today}.zip`, body };
    },
  };
}

// An expected "no" is returned: nothing else stands in the transaction, but it must not be undone by a throw.
async function register(
  sql: Parameters<typeof lockExports>[0],
  actor: Identity,
  origin: Origin,
  id: string,
): Promise<AppError | null> {
  const standing = await lockExports(sql, actor.userId);
  if (!standing) return new AppError("unauthorized");
  if (standing.running) return new AppError("export_running", { retry_after: LEASE_SECONDS });
  if (standing.started >= PER_HOUR && standing.freeAt) {
    const seconds = Math.max(1, Math.ceil((standing.freeAt.getTime() - Date.now()) / 1000));
    const sentence = `Your data can be exported ${PER_HOUR} times an hour; wait a little and try again.`;
    return new AppError("too_many_attempts", { retry_after: seconds }, sentence);
  }
  await insertExport(sql, { id, userId: actor.userId, leaseSeconds: LEASE_SECONDS });
  await insertAudit(sql, {
    actor: `user:${actor.userId}`,
    action: "account.exported",
    subjectUserId: actor.userId,
    ...origin,
  });
  return null;
}

type Controller = ReadableStreamDefaultController<Uint8Array>;
type Lease = ReturnType<typeof leaseOf>;

// Postgres may be away for a moment: the lease is longer than that.
function leaseOf(deps: ExportDeps, id: string, { userId, sessionId }: Identity) {
  const failed = (err: unknown) => deps.log.warn({ err }, "an export's lease could not be written");
  return {
    /** False when it must not go on. */
    renew: () =>
      renewExport(deps.sql, { id, userId, sessionId, leaseSeconds: LEASE_SECONDS }).catch((err: unknown) => {
        failed(err);
        return true;
      }),
    end: () => endExport(deps.sql, { id, userId }).catch(failed),
  };
}

/** The chunks as a stream that renews the lease while it is read, and ends everything with its end, whichever it is. */
function streamOf(
  deps: ExportDeps,
  chunks: AsyncGenerator<Uint8Array>,
  aborter: AbortController,
  running: Set<() => Promise<void>>,
  lease: Lease,
): ReadableStream<Uint8Array> {
  let renewing: ReturnType<typeof setInterval> | undefined;
  let over: Promise<void> | undefined;
  const finish = () => (over ??= end());
  const end = async () => {
    clearInterval(renewing);
    aborter.abort();
    await chunks.return(undefined).catch(() => undefined);
    await lease.end();
    running.delete(finish);
  };
  // The connection is cut: a ZIP that lacks something must not look whole. The server prints this error.
  const breakOff = (controller: Controller) => controller.error(new Error("the export broke off"));
  const renew = async (controller: Controller) => {
    if ((await lease.renew()) || over) return;
    aborter.abort();
    breakOff(controller);
    await finish();
  };
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        if (!running.has(finish)) {
          running.add(finish);
          renewing = setInterval(() => void renew(controller), RENEW_MS);
        }
        try {
          const next = await chunks.next();
          if (!next.done) return controller.enqueue(next.value);
          controller.close();
        } catch (err) {
          if (!aborter.signal.aborted) deps.log.error({ err }, "an export broke off");
          breakOff(controller);
        }
        await finish();
      },
      cancel: finish,
    },
    { highWaterMark: 0 },
  );
}
