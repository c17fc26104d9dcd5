import { closeSync, existsSync, openSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { dyingWithUs } from "../../src/lib/deathSignal.ts";

/** Takes one progress sentence for the person at the terminal. */
export type Log = (line: string) => void;

/** A problem somebody can act on: its message is a whole sentence and is shown without a stack trace. */
export class StartError extends Error {
  constructor(
    message: string,
    readonly exitCode = 1,
  ) {
    super(message);
  }
}

/** A process that we started. `exited` never rejects; a process killed by a signal reports 128 + the signal's number. */
export type Child = {
  pid: number;
  exited: Promise<number>;
  running(): boolean;
  kill(signal: NodeJS.Signals): void;
  /** Sends `signal`, and `last` when the process still lives after `withinMs`. Resolves when it is gone. */
  stop(signal: NodeJS.Signals, withinMs: number, last?: NodeJS.Signals): Promise<void>;
};

type SpawnOptions = {
  command: string[];
  env: Record<string, string>;
  /** What the kernel sends the process when we die, however we die. */
  deathSignal: "INT" | "TERM" | "KILL";
  /** Output is appended here; without it our own terminal is used. */
  logFile?: string;
  /** Given on stdin, which is then closed. */
  input?: string;
  /** Further setpriv flags: another user, capabilities. */
  privileges?: string[];
  /** False leaves the process in our group, so that Ctrl-C reaches it too. */
  detached?: boolean;
};

/** Starts a process that can't outlive us. It is in a session of its own: Ctrl-C reaches only us, and we stop things in order. */
export function spawnChild(options: SpawnOptions): Child {
  const log = options.logFile === undefined ? null : openSync(options.logFile, "a", 0o600);
  try {
    const child = Bun.spawn([...dyingWithUs(options.deathSignal, options.privileges), ...options.command], {
      env: options.env,
      stdin: options.input === undefined ? "ignore" : Buffer.from(options.input),
      stdout: log ?? "inherit",
      stderr: log ?? "inherit",
      detached: options.detached ?? true,
    });
    return {
      pid: child.pid,
      exited: child.exited,
      running: () => child.exitCode === null && child.signalCode === null,
      kill: (signal) => child.kill(signal),
      async stop(signal, withinMs, last = "SIGKILL") {
        child.kill(signal);
        const timer = setTimeout(() => child.kill(last), withinMs);
        await child.exited;
        clearTimeout(timer);
      },
    };
  } finally {
    if (log !== null) closeSync(log);
  }
}

/** A TCP port of 127.0.0.1 that is free now. Somebody else may take it before we do: callers retry. */
export function freePort(): number {
  const server = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  const port = server.port;
  server.stop(true);
  return port;
}

/** Asks `check` until it is true, the process ends or the time is over; false unless it became true. */
export async function waitUntil(
  child: Child,
  withinMs: number,
  check: () => Promise<boolean>,
  everyMs = 40,
): Promise<boolean> {
  const deadline = performance.now() + withinMs;
  while (child.running() && performance.now() < deadline) {
    if (await check().catch(() => false)) return true;
    await Bun.sleep(everyMs);
  }
  return false;
}

/** Moves a log that has grown over 5 MB aside, over the last one moved: two files at most. */
export function rotateLog(file: string): void {
  if (existsSync(file) && statSync(file).size > 5_000_000) renameSync(file, `${file}.1`);
}

/** The end of a log as text, at most `lines` lines, of what was written after byte `from`. */
export function lastLines(file: string, lines: number, from = 0): string {
  if (!existsSync(file)) return "";
  return readFileSync(file).subarray(from).toString("utf8").trimEnd().split("\n").slice(-lines).join("\n");
}

/** The sentence for a failed start: what the service was, what it said last, and where the rest is. */
export function startFailure(service: string, logFile: string): StartError {
  const said = lastLines(logFile, 15);
  if (/ENOSPC|EDQUOT|No space left|disk (is )?full|Check free disk space|disk quota/i.test(said))
    return new StartError(diskFull(logFile));
  return new StartError(`${service} did not start. Its last words, from ${logFile}:\n${said}`);
}

/** Any error as a sentence for people. `folder` is where we were writing. */
export function explain(error: unknown, folder: string): string {
  if (error instanceof StartError) return error.message;
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  if (code === "ENOSPC" || code === "EDQUOT") return diskFull(folder);
  if (code === "EROFS") return `${folder} is on a read-only disk: set REEF_DATA_DIR to a folder that can be written.`;
  if (code === "EACCES" || code === "EPERM") {
    const path = error instanceof Error && "path" in error ? String(error.path) : folder;
    return `No permission to write ${path}: run as its owner, or set REEF_DATA_DIR to another folder.`;
  }
  return error instanceof Error ? error.message : String(error);
}

/** Whether there is no room left in a folder, by its disk or by somebody's quota. */
export function isDiskFull(folder: string): boolean {
  const file = join(folder, "room-left");
  try {
    writeFileSync(file, Buffer.alloc(64 * 1024), { flush: true });
    return false;
  } catch (error) {
    return ["ENOSPC", "EDQUOT"].includes(error instanceof Error && "code" in error ? String(error.code) : "");
  } finally {
    rmSync(file, { force: true });
  }
}

/** The sentence for a full disk. */
export function diskFull(path: string): string {
  return `The disk that holds ${path} is full: free some space and start again.`;
}

/** An environment without the variables that are not set. */
export function present(source: Record<string, string | undefined>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(source).filter((entry): entry is [string, string] => entry[1] !== undefined),
  );
}
