import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { spawnChild, StartError, lastLines } from "../../scripts/services/process.ts";
import { startFakeOpenAi } from "../../test/fakes/openai.ts";
import type { Services } from "../bench.ts";
import { bun, node, SERVICES_IP, type Host, type Started } from "./network.ts";
import { GATEWAY_TOKEN, JWT_SECRET } from "./reef.ts";

const PORTS = { api: 3000, gateway: 18789, files: 18790, postgres: 5432, redis: 6379, model: 8080 };

/** What one host runs: a gateway, the process with its folder, and an API process that dispatches for it. */
export interface Cell {
  id: string;
  host: Host;
  /** Where its sockets are. */
  url: string;
  stop(): Promise<void>;
}

/** Postgres and Redis, which listen on loopback, become servers of the bench's own host. */
export async function shareServices(services: Services): Promise<void> {
  await relay(services, PORTS.postgres, Number(new URL(services.databaseUrl).port));
  await relay(services, PORTS.redis, Number(new URL(services.redisUrl).port));
}

async function relay(services: Services, port: number, target: number): Promise<void> {
  const env = { PATH: String(process.env["PATH"]), LISTEN: `${SERVICES_IP}:${port}`, TARGET_PORT: String(target) };
  const child = spawnChild({ command: node("bench/systems/tcpRelay.ts"), env, deathSignal: "KILL" });
  services.keep(`relay of port ${port}`, child);
  const until = performance.now() + 10_000;
  const listens = () => Bun.connect({ hostname: SERVICES_IP, port, socket: { data: () => undefined } });
  while (performance.now() < until) {
    const socket = await listens().catch(() => null);
    if (socket) return void socket.end();
    await Bun.sleep(50);
  }
  throw new StartError(`the relay of port ${port} did not start`);
}

function moved(url: string, port: number): string {
  return Object.assign(new URL(url), { hostname: SERVICES_IP, port: String(port) }).toString();
}

/** Starts a cell on a host; `real` is the pinned OpenClaw gateway before a model of eight words, else the load gateway. */
export async function startCell(services: Services, host: Host, id: string, real = false): Promise<Cell> {
  const dir = join(services.folder, id);
  for (const name of ["state", "home", "workspaces"]) mkdirSync(join(dir, name), { recursive: true, mode: 0o700 });
  const filesToken = "bench-files-token";
  const settings = {
    DATABASE_URL: moved(services.databaseUrl, PORTS.postgres),
    REDIS_URL: moved(services.redisUrl, PORTS.redis),
    JWT_SECRET,
    HOST: host.ip,
    PORT: String(PORTS.api),
    GATEWAY_ID: id,
    OPENCLAW_GATEWAY_URL: `ws://127.0.0.1:${PORTS.gateway}`,
    OPENCLAW_GATEWAY_TOKEN: GATEWAY_TOKEN,
    OPENCLAW_GATEWAY_DIR: dir,
    GATEWAY_FILES_URL: `http://${host.ip}:${PORTS.files}`,
    GATEWAY_FILES_HOST: host.ip,
    GATEWAY_FILES_PORT: String(PORTS.files),
    GATEWAY_FILES_TOKEN: filesToken,
    OPENAI_BASE_URL: real ? `http://${SERVICES_IP}:${PORTS.model}/v1` : "http://127.0.0.1:1/v1",
  };
  const stops: Started[] = [];
  if (real) await prepareRealGateway(services, settings);
  stops.push(await startGatewayOn(host, dir, real, settings.OPENAI_BASE_URL));
  stops.push(await host.start({ name: "files", command: bun("src/files.ts"), env: settings, port: PORTS.files }));
  stops.push(await host.start({ name: "api", command: bun("src/main.ts"), env: settings, port: PORTS.api }));
  return {
    id,
    host,
    url: `http://${host.ip}:${PORTS.api}`,
    stop: async () => {
      for (const started of stops.reverse()) await started.stop();
    },
  };
}

function startGatewayOn(host: Host, dir: string, real: boolean, model: string): Promise<Started> {
  const env = { GATEWAY_DIR: dir, GATEWAY_TOKEN, PORT: String(PORTS.gateway) };
  const command = real ? bun("bench/systems/gatewayHost.ts") : node("bench/systems/loadGateway.ts");
  const key = { OPENAI_API_KEY: "bench", OPENAI_BASE_URL: model };
  return host.start({ name: "gateway", command, env: { ...env, ...(real && key) }, port: PORTS.gateway });
}

/** The step before a gateway's start, and the model it talks to. */
async function prepareRealGateway(services: Services, settings: Record<string, string>): Promise<void> {
  const model = await startFakeOpenAi({
    async *answer() {
      for (let i = 0; i < 8; i++) {
        yield { text: `word ${i} ` };
        yield { delayMs: 20 };
      }
    },
  });
  services.onEnd(() => model.close());
  await relay(services, PORTS.model, Number(new URL(model.url).port));
  const logFile = join(services.folder, "park.log");
  const env = { PATH: String(process.env["PATH"]), ...settings };
  const job = spawnChild({ command: bun("src/jobs/parkAgents.ts"), env, deathSignal: "KILL", logFile });
  if ((await job.exited) !== 0) throw new StartError(`parkAgents failed:\n${lastLines(logFile, 10)}`);
}
