import type { z } from "zod";
import { sleep, withDeadline } from "../lib/retry.ts";
import {
  agentsSchema,
  canaryFoundSchema,
  canaryPlacesSchema,
  configTextSchema,
  doneSchema,
  failureSchema,
  fileLineSchema,
  FOLDER_HEADER,
  mendedSchema,
  tagOf,
} from "../protocol/gatewayFiles.ts";
import type { WorkspaceFile } from "./workspaceFiles.ts";
import { pathsIn, type AgentSettings, type Workspaces } from "./workspaces.ts";

/** One agent's folder or one file: small; a host that is away is noticed within this. */
const CALL_MS = 8_000;
/** Everything of an agent, its database included, on a slow disk. */
const PURGE_MS = 120_000;
/** Until the next piece of a folder that is read. */
const NEXT_PIECE_MS = 30_000;
/** More than a line can have: a file of 1 MB in base64. */
const LINE_LIMIT_CHARACTERS = 4_000_000;
/** A files process that is started again is back within these. */
const TRIES = 4;
const TRY_AGAIN_MS = 150;

/** The folder failed; `code` is the file system's (ENOSPC: it is full). */
export class FilesError extends Error {
  constructor(
    readonly code: string,
    message: string,
  ) {
    super(message);
    this.name = "FilesError";
  }
}

/** Nobody answers as they should (`code` says how): it says nothing of an agent, and is over when that is put right. */
export class FilesAwayError extends Error {
  constructor(
    cause: unknown,
    readonly code = "no_answer",
    message = "the gateway's files process does not answer",
  ) {
    super(message, { cause });
    this.name = "FilesAwayError";
  }
}

interface Call {
  method: "GET" | "POST" | "PUT" | "DELETE";
  path: string;
  body?: string;
  headers?: Record<string, string>;
}
type Ask = (call: Call, signal: AbortSignal) => Promise<Response>;

/**
 * A gateway's folder through the process beside the gateway (src/files.ts). `dir` is where it lies there: it goes into the
 * gateway's configuration, and the other side refuses to work when it knows another place.
 * Throws FilesAwayError when nobody answers in time or what was asked is refused, FilesError when the folder fails.
 */
export function createRemoteWorkspaces(options: { url: string; token: string; dir: string }): Workspaces {
  const ask = createAsk(options);
  const call = async <S extends z.ZodType>(schema: S, call: Call, timeoutMs = CALL_MS): Promise<z.output<S>> => {
    const signal = AbortSignal.timeout(timeoutMs);
    const response = await ask(call, signal);
    const body: unknown = await response.json().catch((error: unknown) => {
      throw new FilesAwayError(error);
    });
    const answer = schema.safeParse(body);
    // Somebody else, or another release than ours: that says nothing of an agent.
    if (!answer.success) throw new FilesAwayError(answer.error, "strange_answer");
    return answer.data;
  };
  const agent = (agentId: string, what = "") => `/agents/${encodeURIComponent(agentId)}${what}`;
  const post = (what: string, { agentId, displayName }: AgentSettings) =>
    call(mendedSchema, {
      method: "POST",
      path: agent(agentId, what),
      body: JSON.stringify({ display_name: displayName }),
      headers: { "Content-Type": "application/json" },
    });
  const canary = <S extends z.ZodType>(schema: S, act: string, input: object) =>
    call(schema, {
      method: "POST",
      path: `/canary/${act}`,
      body: JSON.stringify(input),
      headers: { "Content-Type": "application/json" },
    });
  // What stood there when we looked or wrote last: a write is one over exactly that.
  let known: string | undefined;
  return {
    ...pathsIn(options.dir),
    prepare: async (settings) => void (await post("/prepare", settings)),
    guard: async (settings) => (await post("/guard", settings)).mended,
    readFiles: (agentId) => readFiles(ask, agent(agentId, "/files")),
    async readConfig() {
      const { text } = await call(configTextSchema, { method: "GET", path: "/config" });
      known = tagOf(text);
      return text;
    },
    async writeConfig(text) {
      const headers = { "Content-Type": "text/plain", ...(known !== undefined && { "If-Match": known }) };
      await call(doneSchema, { method: "PUT", path: "/config", body: text, headers });
      known = tagOf(text);
    },
    listAgents: async () => (await call(agentsSchema, { method: "GET", path: "/agents" })).agents,
    purge: async (id) => void (await call(doneSchema, { method: "DELETE", path: agent(id) }, PURGE_MS)),
    clearLeftovers: async () => void (await call(doneSchema, { method: "DELETE", path: "/leftovers" }, PURGE_MS)),
    plantCanary: (input) => canary(canaryPlacesSchema, "plant", input),
    linkCanary: async (pair) => void (await canary(doneSchema, "link", pair)),
    removeCanaryLinks: async (pair) => void (await canary(doneSchema, "unlink", pair)),
    searchCanary: (input) => canary(canaryFoundSchema, "search", input),
    clearCanary: async (pair) => void (await canary(doneSchema, "clear", pair)),
  };
}

function createAsk({ url, token, dir }: { url: string; token: string; dir: string }): Ask {
  const always = { Authorization: `Bearer ${token}`, [FOLDER_HEADER]: encodeURIComponent(dir) };
  return async ({ method, path, body, headers }, signal) => {
    const request = { method, headers: { ...always, ...headers }, signal, ...(body !== undefined && { body }) };
    const response = await sendUntilHeard(`${url.replace(/\/$/, "")}${path}`, request);
    if (response.ok) return response;
    const failure = failureSchema.safeParse(await response.json().catch(() => null));
    const { code, error } = failure.data ?? { code: `HTTP_${response.status}`, error: "an answer of somebody else" };
    const message = `the gateway's files process: ${error} (${code})`;
    throw response.status >= 500 && failure.success
      ? new FilesError(code, message)
      : new FilesAwayError(null, code, message);
  };
}

/** Everything that is asked may be done twice; so what did not get through is sent again at once, a few times. */
async function sendUntilHeard(url: string, request: RequestInit & { signal: AbortSignal }): Promise<Response> {
  for (let tries = 1; ; tries++) {
    try {
      return await fetch(url, request);
    } catch (error) {
      if (request.signal.aborted || tries === TRIES) throw new FilesAwayError(error);
      await sleep(TRY_AGAIN_MS, request.signal);
    }
  }
}

/** Throws when the folder was not read to its end: an export must not lack something in silence. */
async function* readFiles(ask: Ask, path: string): AsyncGenerator<WorkspaceFile> {
  const aborter = new AbortController();
  try {
    const response = await waitFor(ask({ method: "GET", path }, aborter.signal));
    for await (const line of readLines(response)) {
      const file = fileLineSchema.parse(JSON.parse(line));
      if ("end" in file) return;
      if ("left_out" in file) yield { path: file.path, leftOut: file.left_out };
      else yield { path: file.path, changedAt: file.changed_at, content: Buffer.from(file.content, "base64") };
    }
    throw new FilesAwayError(null, "cut_off", "the gateway's files process broke off");
  } finally {
    aborter.abort();
  }
}

async function* readLines(response: Response): AsyncGenerator<string> {
  const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await waitFor(reader.read());
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop()!;
    if (rest.length > LINE_LIMIT_CHARACTERS) throw new FilesAwayError(null, "too_long");
    yield* lines;
  }
}

function waitFor<T>(piece: Promise<T>): Promise<T> {
  return withDeadline(piece, NEXT_PIECE_MS, "the gateway's files process").catch((error: unknown) => {
    throw error instanceof FilesError || error instanceof FilesAwayError ? error : new FilesAwayError(error);
  });
}
