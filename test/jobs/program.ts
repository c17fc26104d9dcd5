import { resolve } from "node:path";

const root = resolve(import.meta.dir, "../..");

export interface Ended {
  code: number;
  /** Standard output without the log's JSON lines. */
  out: string;
  said: string;
}

/** Starts a program of ours as a child with this environment: a file of src/jobs, or `-e` with source text. */
export function start(env: Record<string, string>, args: string[]) {
  const child = Bun.spawn([process.execPath, "--no-env-file", ...args], {
    cwd: root,
    env: { PATH: process.env["PATH"] ?? "", ...env },
    stdout: "pipe",
    stderr: "pipe",
  });
  const ended = (async (): Promise<Ended> => {
    const [text, said] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
    const lines = text.split("\n").filter((line) => line !== "" && !line.startsWith("{"));
    return { code: await child.exited, out: lines.join("\n"), said };
  })();
  return { child, ended };
}

/** Runs a job's program to its end. */
export function runProgram(env: Record<string, string>, ...args: string[]): Promise<Ended> {
  return start(env, args).ended;
}

export interface Duty {
  url: string;
  /** What was posted, in order. */
  posts: Record<string, unknown>[];
  /** What the next posts are answered with. */
  answer(status: number): void;
  stop(): Promise<void>;
}

/** The chat of whoever is on duty: a real server that alarms are posted to. */
export function startDuty(): Duty {
  const posts: Record<string, unknown>[] = [];
  let status = 200;
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    async fetch(request) {
      posts.push((await request.json()) as Record<string, unknown>);
      return new Response(null, { status });
    },
  });
  return {
    url: `http://127.0.0.1:${server.port}/alarms`,
    posts,
    answer: (next) => void (status = next),
    stop: () => server.stop(true),
  };
}
