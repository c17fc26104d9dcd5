import { createHash, timingSafeEqual } from "node:crypto";
import { parseArgs } from "node:util";
import type { z } from "zod";
import { Hono, type Context, type MiddlewareHandler } from "hono";
import { bodyLimit } from "hono/body-limit";
import { HTTPException } from "hono/http-exception";
import { createWorkspaces, type AgentSettings, type LocalWorkspaces } from "./clients/workspaces.ts";
import type { WorkspaceFile } from "./clients/workspaceFiles.ts";
import { ConfigError, loadFilesConfig, type FilesConfig } from "./config.ts";
import { createLog, type Log } from "./lib/log.ts";
import { withDeadline } from "./lib/retry.ts";
import {
  agentIdSchema,
  canaryPairSchema,
  canaryPlantSchema,
  canarySearchSchema,
  CONFIG_LIMIT_BYTES,
  FOLDER_HEADER,
  settingsSchema,
  tagOf,
} from "./protocol/gatewayFiles.ts";

const help = `Serves the folder of a gateway to Reef's API: runs beside the gateway, as the gateway's user.

  bun src/files.ts

Settings, from the environment: OPENCLAW_GATEWAY_DIR, GATEWAY_FILES_TOKEN, GATEWAY_FILES_PORT, GATEWAY_FILES_HOST, LOG_LEVEL
(.env.example says more). The API finds it by GATEWAY_FILES_URL, with the same token. Only a network that nobody else
hears may carry it: it speaks plain HTTP. GET /livez and /readyz need no token. Exit code: 0 stopped by SIGTERM,
78 a setting is missing or wrong, 1 it could not listen.`;

const SETTINGS_LIMIT_BYTES = 8 * 1024;
const CANARY_LIMIT_BYTES = 256 * 1024;
const DRAIN_MS = 8_000;
/** A connection without traffic is closed after this; the client's pause between two turns is mostly shorter. */
const IDLE_SECONDS = 120;

interface FilesEnv {
  Bindings: { allowQuiet(): void };
  Variables: { agentId: string };
}

/** A running server of a gateway's folder. */
export interface RunningFiles {
  port: number;
  stop(): Promise<void>;
}

/** Listens; resolves as soon as it serves. Throws when the port is taken. */
export function startFiles(config: FilesConfig, log: Log): RunningFiles {
  const app = createFilesApp(config, createWorkspaces(config.OPENCLAW_GATEWAY_DIR, log), log);
  const server = Bun.serve({
    hostname: config.GATEWAY_FILES_HOST,
    port: config.GATEWAY_FILES_PORT,
    idleTimeout: IDLE_SECONDS,
    maxRequestBodySize: CONFIG_LIMIT_BYTES,
    development: false,
    // An export is read as fast as a person's connection takes it.
    fetch: (request, own) => app.fetch(request, { allowQuiet: () => own.timeout(request, 0) }),
  });
  return {
    port: server.port ?? config.GATEWAY_FILES_PORT,
    stop: () => withDeadline(server.stop(false), DRAIN_MS, "open requests").catch(() => server.stop(true)),
  };
}

function createFilesApp(config: FilesConfig, workspaces: LocalWorkspaces, log: Log): Hono<FilesEnv> {
  const app = new Hono<FilesEnv>();
  app.onError((error, c) => renderFailure(error, c, log));
  app.notFound((c) => c.json({ error: "There is no such address.", code: "not_found" }, 404));
  app.get("/livez", (c) => c.json({ status: "ok" }));
  app.get("/readyz", async (c) => {
    await workspaces.readConfig();
    return c.json({ status: "ok" });
  });
  app.use(requireToken(config.GATEWAY_FILES_TOKEN), requireSameFolder(config.OPENCLAW_GATEWAY_DIR));
  app.use("/agents/:id/*", bodyLimit({ maxSize: SETTINGS_LIMIT_BYTES, onError: tooLarge }));
  addAgents(app, workspaces);
  addConfig(app, workspaces);
  addCanary(app, workspaces);
  app.delete("/leftovers", async (c) => {
    await workspaces.clearLeftovers();
    return c.json({});
  });
  return app;
}

function addAgents(app: Hono<FilesEnv>, workspaces: LocalWorkspaces): void {
  app.get("/agents", async (c) => c.json({ agents: await workspaces.listAgents() }));
  app.use("/agents/:id/*", async (c, next) => {
    const id = agentIdSchema.safeParse(c.req.param("id"));
    if (!id.success) return refuse(404, "not_found", "That is not an agent's id.");
    c.set("agentId", id.data);
    await next();
  });
  app.post("/agents/:id/prepare", async (c) => {
    await workspaces.prepare(await readSettings(c));
    return c.json({ mended: 0 });
  });
  app.post("/agents/:id/guard", async (c) => c.json({ mended: await workspaces.guard(await readSettings(c)) }));
  app.get("/agents/:id/files", (c) => {
    c.env.allowQuiet();
    const body = streamLines(workspaces.readFiles(c.get("agentId")));
    return c.body(body, 200, { "Content-Type": "application/x-ndjson" });
  });
  app.delete("/agents/:id", async (c) => {
    await workspaces.purge(c.get("agentId"));
    return c.json({});
  });
}

function addConfig(app: Hono<FilesEnv>, workspaces: LocalWorkspaces): void {
  let writing: Promise<unknown> = Promise.resolve();
  const write = async (text: string, over: string | undefined) => {
    const standing = tagOf(await workspaces.readConfig());
    // A write that was on its way for long must not undo a newer one; the same one again is done.
    if (over !== undefined && standing !== over && standing !== tagOf(text))
      refuse(412, "changed_meanwhile", "Another configuration stands there by now.");
    await workspaces.writeConfig(text);
  };
  app.get("/config", async (c) => c.json({ text: await workspaces.readConfig() }));
  app.put("/config", bodyLimit({ maxSize: CONFIG_LIMIT_BYTES, onError: tooLarge }), async (c) => {
    const text = await c.req.text();
    const done = writing.then(() => write(text, c.req.header("if-match")));
    writing = done.catch(() => undefined);
    await done;
    return c.json({});
  });
}

function addCanary(app: Hono<FilesEnv>, workspaces: LocalWorkspaces): void {
  app.use("/canary/*", bodyLimit({ maxSize: CANARY_LIMIT_BYTES, onError: tooLarge }));
  const act = <S extends z.ZodType>(name: string, schema: S, work: (input: z.output<S>) => Promise<object | void>) =>
    app.post(`/canary/${name}`, async (c) => {
      const body = schema.safeParse(await c.req.json().catch(() => null));
      if (!body.success) return refuse(400, "validation_failed", "That is not what the canary asks for.");
      return c.json((await work(body.data)) ?? {});
    });
  act("plant", canaryPlantSchema, (input) => workspaces.plantCanary(input));
  act("link", canaryPairSchema, (pair) => workspaces.linkCanary(pair));
  act("unlink", canaryPairSchema, (pair) => workspaces.removeCanaryLinks(pair));
  act("search", canarySearchSchema, (input) => workspaces.searchCanary(input));
  act("clear", canaryPairSchema, (pair) => workspaces.clearCanary(pair));
}

async function readSettings(c: Context<FilesEnv>): Promise<AgentSettings> {
  const body = settingsSchema.safeParse(await c.req.json().catch(() => null));
  if (!body.success) return refuse(400, "validation_failed", "The agent's settings are not valid.");
  return { agentId: c.get("agentId"), displayName: body.data.display_name };
}

/** A file per line, read as fast as the lines are taken. What fails breaks the stream before its last line. */
function streamLines(files: AsyncGenerator<WorkspaceFile>): ReadableStream<Uint8Array> {
  const render = (line: object) => new TextEncoder().encode(`${JSON.stringify(line)}\n`);
  return new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const next = await files.next();
        if (!next.done) return controller.enqueue(render(renderFile(next.value)));
        controller.enqueue(render({ end: true }));
        controller.close();
      },
      cancel: async () => void (await files.return(undefined)),
    },
    { highWaterMark: 0 },
  );
}

function renderFile(file: WorkspaceFile): object {
  if (file.leftOut !== undefined) return { path: file.path, left_out: file.leftOut };
  return { path: file.path, changed_at: file.changedAt, content: file.content.toString("base64") };
}

function requireToken(token: string): MiddlewareHandler<FilesEnv> {
  // Of equal length whatever was sent: the comparison tells nothing by its time.
  const digest = (text: string) => createHash("sha256").update(text).digest();
  const wanted = digest(`Bearer ${token}`);
  return async (c, next) => {
    if (!timingSafeEqual(digest(c.req.header("authorization") ?? ""), wanted))
      return refuse(401, "unauthorized", "The token is not GATEWAY_FILES_TOKEN.");
    await next();
  };
}

function requireSameFolder(dir: string): MiddlewareHandler<FilesEnv> {
  return async (c, next) => {
    const named = c.req.header(FOLDER_HEADER);
    if (named !== undefined && decodeURIComponent(named) !== dir)
      return refuse(409, "wrong_folder", "OPENCLAW_GATEWAY_DIR is not the same for the API and beside the gateway.");
    await next();
  };
}

function tooLarge(): never {
  return refuse(413, "body_too_large", "The body is too large.");
}

function refuse(status: 400 | 401 | 404 | 409 | 412 | 413, code: string, error: string): never {
  throw new HTTPException(status, { message: error, cause: code });
}

function renderFailure(error: Error, c: Context<FilesEnv>, log: Log): Response {
  if (error instanceof HTTPException) return c.json({ error: error.message, code: String(error.cause) }, error.status);
  const code = (error as NodeJS.ErrnoException).code ?? "internal_error";
  log.error({ err: error, method: c.req.method, path: c.req.path }, "the gateway's folder");
  return c.json({ error: "The gateway's folder could not be read or written.", code }, code === "ENOSPC" ? 507 : 500);
}

function readConfigOrExit(): FilesConfig {
  try {
    return loadFilesConfig(process.env);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    console.error(error.message);
    return process.exit(78);
  }
}

function main(): void {
  const { values } = parseArgs({ options: { help: { type: "boolean", short: "h", default: false } }, strict: false });
  if (values.help === true) return console.log(help);
  const config = readConfigOrExit();
  const log = createLog(config.LOG_LEVEL);
  const files = startFiles(config, log);
  log.info({ port: files.port }, "serving the gateway's folder");
  let stopping = false;
  const stop = () => {
    if (stopping) process.exit(1);
    stopping = true;
    void files.stop().finally(() => process.exit(0));
  };
  process.on("SIGTERM", stop);
  process.on("SIGINT", stop);
}

if (import.meta.main) main();
