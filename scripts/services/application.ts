import { existsSync, readdirSync, readFileSync, readlinkSync, statSync } from "node:fs";
import { join } from "node:path";
import { diskFull, isDiskFull, lastLines, present, rotateLog, spawnChild, waitUntil, type Child } from "./process.ts";
import type { Run } from "./run.ts";
import { urlOf } from "./settings.ts";

const STOP_MS = 12_000;
const AGAIN_MS = 1_000;

type Options = {
  host: string;
  port: number;
  env: Record<string, string | undefined>;
  /** Where the logs go, unless `logs`: then to this terminal. */
  folder: string;
  logs: boolean;
  /** All of them listen on the one port. */
  processes: number;
};

type Launched = {
  child: Child;
  /** What it has logged, for a sentence about its end. */
  said(): string;
  /** False when it ended before it listened. */
  listens(): Promise<boolean>;
};

/**
 * Starts the application's processes. One that ends is started again while others serve; the only one ends it all.
 * Resolves when all serve, with the way to replace them: one after the other, the new one serves before the old one stops.
 */
export async function keepApplication(run: Run, options: Options): Promise<{ replaceAll(): Promise<void> }> {
  const children = new Map<number, Child>();
  const watch = (n: number, launched: Launched) => {
    const { child } = launched;
    children.set(n, child);
    void child.exited.then((code) => (children.get(n) === child ? ended(n, code, launched.said()) : undefined));
  };
  const start = async (n: number): Promise<void> => {
    const launched = launch(options, n);
    watch(n, launched);
    // It ended: `ended` stops everything and says why, or starts another.
    if (!(await launched.listens()) && options.processes === 1) await new Promise(() => undefined);
  };
  const ended = async (n: number, code: number, said: string): Promise<unknown> => {
    if (run.stopping()) return;
    if (code !== 0 && isDiskFull(options.folder)) return run.stop(1, diskFull(logOf(options, n)));
    if (code === 78) return run.stop(78, `The application refuses its configuration:${said}`);
    if (options.processes === 1) return run.stop(1, `The application ended (exit code ${code}).${said}`);
    run.say(`process ${n} of the application ended (exit code ${code}): starting it again`);
    await Bun.sleep(AGAIN_MS);
    if (!run.stopping()) await start(n);
  };
  const replaceAll = async () => {
    for (const n of children.keys()) {
      const launched = launch(options, n);
      const listens = await launched.listens();
      if (run.stopping()) return;
      if (!listens) return run.say(`process ${n} of the application stays: the new one ended.${launched.said()}`);
      const old = children.get(n);
      watch(n, launched);
      await old?.stop("SIGTERM", STOP_MS);
      run.say(`process ${n} of the application was replaced`);
    }
  };

  run.add("application", {
    stop: async () => void (await Promise.all([...children.values()].map((child) => child.stop("SIGTERM", STOP_MS)))),
    kill: () => children.forEach((child) => child.kill("SIGKILL")),
  });
  const others = options.processes > 1 ? " and others beside it" : "";
  if (!options.logs) run.say(`the application's log: ${logOf(options, 1)}${others}`);
  // One after the other: the first migrates the database.
  for (let n = 1; n <= options.processes; n++) await start(n);
  await waitUntil(children.get(1)!, Number.POSITIVE_INFINITY, () => isReady(options), 150);
  let replacing: Promise<void> = Promise.resolve();
  return { replaceAll: () => (replacing = replacing.then(replaceAll)) };
}

function logOf({ folder }: Options, n: number): string {
  return join(folder, n === 1 ? "api.log" : `api-${n}.log`);
}

function launch(options: Options, n: number): Launched {
  const logFile = logOf(options, n);
  rotateLog(logFile);
  const from = existsSync(logFile) ? statSync(logFile).size : 0;
  const child = spawnChild({
    command: [process.execPath, "--no-env-file", join(import.meta.dir, "../../src/main.ts")],
    env: present({ ...options.env, PROCESSES: String(options.processes) }),
    deathSignal: "KILL",
    ...(options.logs ? {} : { logFile }),
  });
  return {
    child,
    said: () => (options.logs ? "" : `\n${lastLines(logFile, 15, from)}`),
    listens: () => waitUntil(child, Number.POSITIVE_INFINITY, async () => isListening(child.pid, options.port), 150),
  };
}

async function isReady({ host, port }: Options): Promise<boolean> {
  return (await fetch(`${urlOf(host, port)}/readyz`, { signal: AbortSignal.timeout(3_000) })).ok;
}

/** Whether this very process listens on the port, of several that do: its open sockets against the kernel's list. */
function isListening(pid: number, port: number): boolean {
  const hexPort = port.toString(16).toUpperCase().padStart(4, "0");
  const tables = ["/proc/net/tcp", "/proc/net/tcp6"].filter((path) => existsSync(path));
  const rows = tables.flatMap((path) => readFileSync(path, "utf8").split("\n")).map((line) => line.trim().split(/\s+/));
  const listening = rows.filter((row) => row[1]?.endsWith(`:${hexPort}`) && row[3] === "0A").map((row) => row[9]);
  const open = readdirSync(`/proc/${pid}/fd`).map((fd) => readlinkSync(`/proc/${pid}/fd/${fd}`, "utf8"));
  return listening.some((inode) => open.includes(`socket:[${inode}]`));
}
