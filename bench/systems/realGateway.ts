import { join } from "node:path";
import { startGateway } from "../../scripts/services/gateway.ts";
import { lastLines, spawnChild, StartError } from "../../scripts/services/process.ts";
import { startFakeOpenAi } from "../../test/fakes/openai.ts";
import type { Services } from "../bench.ts";
import { root } from "./program.ts";
import { GATEWAY_TOKEN, gatewayFolder, reefEnvironment } from "./reef.ts";

const WORDS = 8;
const WORD_MS = 20;

/** Starts the pinned OpenClaw gateway before a model that says eight words, one every 20 ms. */
export async function startRealGateway(services: Services): Promise<{ url: string; modelUrl: string }> {
  const model = await startFakeOpenAi({
    async *answer() {
      for (let i = 0; i < WORDS; i++) {
        yield { text: `word ${i} ` };
        yield { delayMs: WORD_MS };
      }
    },
  });
  services.onEnd(() => model.close());
  const settings = { ...reefEnvironment(services, { url: "ws://127.0.0.1:1" }), OPENAI_BASE_URL: model.url };
  await parkAgents(services, settings);
  const gateway = await startGateway({
    dir: gatewayFolder(services),
    token: GATEWAY_TOKEN,
    env: { PATH: process.env["PATH"], OPENAI_API_KEY: "bench", OPENAI_BASE_URL: model.url },
    log: () => undefined,
  });
  services.onEnd(() => gateway.stop());
  return { url: gateway.url, modelUrl: model.url };
}

/** The step before each start of a gateway: it writes the configuration with nobody in it. */
async function parkAgents(services: Services, env: Record<string, string>): Promise<void> {
  const logFile = join(services.folder, "park.log");
  const job = spawnChild({
    command: [process.execPath, "--no-env-file", join(root, "src/jobs/parkAgents.ts")],
    env: { PATH: String(process.env["PATH"]), ...env },
    deathSignal: "KILL",
    logFile,
  });
  if ((await job.exited) !== 0) throw new StartError(`parkAgents failed:\n${lastLines(logFile, 10)}`);
}
