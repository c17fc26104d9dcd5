import { spawn, type ChildProcess } from "node:child_process";
import { createWriteStream } from "node:fs";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { dyingWithUs } from "../lib/deathSignal.ts";

/** One run of a program of the system. Secrets go in `env`, never in `args`: everybody can list those. */
export interface Command {
  program: string;
  args: string[];
  /** Beside our own environment. */
  env?: Record<string, string>;
  cwd?: string;
  /** A program whose output is read as input. */
  input?: Command;
  /** File that takes the output (0600, made new). */
  output?: string;
  signal?: AbortSignal;
  /** "output": what it printed counts even when it ends with a failure, as long as there is something. */
  failed?: "output";
}

/** A program that could not be run, or ended with a failure; the message is its own last sentence. */
export class ProgramError extends Error {
  constructor(
    readonly program: string,
    readonly code: number | null,
    reason: string,
    /** The last of what it printed as errors. */
    readonly said = "",
  ) {
    super(`${program}: ${reason}`);
    this.name = "ProgramError";
  }
}

const SAID_BYTES = 4_000;

/** Runs it to its end; resolves with its output (empty when that went to a file). It dies when we do. Rejects with ProgramError. */
export async function runProgram(command: Command): Promise<string> {
  const source = command.input ? start(command.input, "ignore") : null;
  const main = start(command, source ? "pipe" : "ignore");
  const work: Promise<unknown>[] = [main.ended];
  if (source) work.push(source.ended, feed(source.child.stdout!, main.child));
  let text = "";
  if (command.output === undefined) main.child.stdout!.on("data", (data: Buffer) => (text += data.toString()));
  else work.push(pipeline(main.child.stdout!, createWriteStream(command.output, { mode: 0o600, flags: "wx" })));
  try {
    await Promise.all(work);
  } catch (error) {
    // A full disk, or the other one: nothing of it is to go on.
    for (const { child } of [main, ...(source ? [source] : [])]) child.kill("SIGKILL");
    await Promise.allSettled(work);
    if (command.failed === "output" && text !== "" && error instanceof ProgramError) return text;
    throw error;
  }
  return text;
}

/** Whoever ended early says why by its exit code; a pipe that broke over it says nothing. */
async function feed(from: Readable, to: ChildProcess): Promise<void> {
  await pipeline(from, to.stdin!).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE" && error.code !== "ERR_STREAM_PREMATURE_CLOSE") throw error;
  });
}

function start(command: Command, stdin: "ignore" | "pipe"): { child: ChildProcess; ended: Promise<void> } {
  const { program, args, env, cwd, signal } = command;
  const [first = "", ...rest] = [...dyingWithUs("KILL"), program, ...args];
  const child = spawn(first, rest, {
    stdio: [stdin, "pipe", "pipe"],
    env: { ...process.env, LC_ALL: "C", ...env },
    ...(cwd === undefined ? {} : { cwd }),
    ...(signal === undefined ? {} : { signal, killSignal: "SIGKILL" }),
  });
  let said = "";
  child.stderr!.on("data", (data: Buffer) => (said = (said + data.toString()).slice(-SAID_BYTES)));
  const ended = new Promise<void>((resolve, reject) => {
    child.on("error", (error) => reject(new ProgramError(program, null, error.message)));
    child.on("close", (code) => (code === 0 ? resolve() : reject(failure(program, code, said))));
  });
  return { child, ended };
}

function failure(program: string, code: number | null, said: string): ProgramError {
  const last =
    said
      .trim()
      .split("\n")
      .findLast((line) => line.trim() !== "") ?? `ended with ${code}`;
  const missing = code === 127 && last.includes(": exec: ");
  return new ProgramError(program, code, missing ? "it is not installed here" : last.slice(0, 300), said);
}
