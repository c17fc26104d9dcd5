import { join } from "node:path";
import { isServing, startGateway, type Gateway } from "./gateway.ts";
import { explain, lastLines, present, rotateLog, spawnChild, StartError } from "./process.ts";
import type { Run } from "./run.ts";

const PROBE_MS = 5_000;
const DEAF_MS = 60_000;

/**
 * Parks and starts the gateway; when it ends later, or lives without serving, again, with growing pauses. Resolves when
 * it first serves.
 */
export async function keepGateway(
  run: Run,
  app: Record<string, string | undefined>,
  port: number,
  logs: string,
): Promise<void> {
  let pauseMs = 1_000;
  const startOnce = async () => {
    await parkAgents(run, app, join(logs, "jobs.log"));
    const startedAt = performance.now();
    const gateway = await startGateway({
      dir: String(app["OPENCLAW_GATEWAY_DIR"]),
      port,
      token: String(app["OPENCLAW_GATEWAY_TOKEN"]),
      env: {
        ...withoutOpenClaw(process.env),
        OPENAI_API_KEY: app["OPENAI_API_KEY"],
        OPENAI_BASE_URL: app["OPENAI_BASE_URL"],
      },
      log: () => undefined,
    });
    run.add("gateway", gateway);
    void killWhenDeaf(run, gateway);
    void gateway.exited.then((code) => {
      if (performance.now() - startedAt > 60_000) pauseMs = 1_000;
      return restart(`the gateway ended (exit code ${code})`);
    });
  };
  const restart = async (what: string): Promise<void> => {
    if (run.stopping()) return;
    run.say(`${what}: starting it again in ${pauseMs / 1000} s`);
    await Bun.sleep(pauseMs);
    pauseMs = Math.min(pauseMs * 2, 30_000);
    if (run.stopping()) return;
    await startOnce().then(
      () => run.say("the gateway serves again"),
      (error: unknown) => restart(explain(error, logs)),
    );
  };
  await startOnce();
}

/** A personal OpenClaw's variables in this shell are not for our gateway. */
function withoutOpenClaw(source: Record<string, string | undefined>): Record<string, string | undefined> {
  return Object.fromEntries(Object.entries(source).filter(([name]) => !name.startsWith("OPENCLAW_")));
}

/** A gateway can live on and serve nobody (2026.9.3 does after a failed restart of its own): then it is killed. */
async function killWhenDeaf(run: Run, gateway: Gateway): Promise<void> {
  let living = true;
  let servedAt = performance.now();
  void gateway.exited.then(() => (living = false));
  while (living && !run.stopping()) {
    await Bun.sleep(PROBE_MS);
    if (await isServing(gateway.port).catch(() => false)) servedAt = performance.now();
    if (!living || run.stopping() || performance.now() - servedAt < DEAF_MS) continue;
    run.say(`the gateway has not served for ${Math.round(DEAF_MS / 1000)} s`);
    return gateway.kill();
  }
}

/**
 * Writes the gateway's configuration with nobody in it and puts sleeping agents' files aside: only before it starts.
 * Throws when it fails: the gateway would take up by itself what it was answering.
 */
async function parkAgents(run: Run, app: Record<string, string | undefined>, logFile: string): Promise<void> {
  rotateLog(logFile);
  const job = spawnChild({
    command: [process.execPath, "--no-env-file", "src/jobs/parkAgents.ts"],
    env: present(app),
    deathSignal: "KILL",
    logFile,
  });
  const timer = setTimeout(() => job.kill("SIGKILL"), 60_000);
  const code = await job.exited;
  clearTimeout(timer);
  if (code !== 0 && !run.stopping())
    throw new StartError(`Parking sleeping agents failed (see ${logFile}): ${lastLines(logFile, 1)}`);
}
