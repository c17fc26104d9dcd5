import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { startGateway, type Gateway } from "../../scripts/services/gateway.ts";
import { freePort } from "../../scripts/services/process.ts";
import { startFakeGateway, type FakeGateway } from "../fakes/gateway.ts";
import { startFakeOpenAi } from "../fakes/openai.ts";
import { GATEWAY_TOKEN, MODEL_KEY, parkAgents } from "../gateway/realGateway.ts";
import type { Script } from "./script.ts";
import type { Victim } from "./servers.ts";

/** A gateway as cells use it: the real one, or the fake. */
export interface CellGateway extends Victim {
  dir: string;
  token: string;
  modelUrl: string;
  /** What the model says from now on; counts its calls anew. */
  play(script: Script): void;
  modelCalls(): number;
  stop(): Promise<void>;
}

const PARK_SETTINGS = { TURN_TOTAL_MS: "300000", GATEWAY_MAX_RUNS: "16" };

/** The real OpenClaw with a scripted model. It takes some ten seconds to start, so it is kept over a run's cells. */
export async function startRealGateway(folder: string): Promise<CellGateway> {
  const dir = mkdtempSync(join(folder, "gateway-"));
  const model = await startFakeOpenAi({ apiKey: MODEL_KEY });
  const port = freePort();
  let gateway: Gateway;
  const start = async () => {
    await parkAgents(
      { ...PARK_SETTINGS, OPENCLAW_GATEWAY_DIR: dir, OPENAI_BASE_URL: model.url },
      join(folder, "park.log"),
    );
    gateway = await startGateway({
      dir,
      port,
      token: GATEWAY_TOKEN,
      env: { PATH: process.env["PATH"], OPENAI_API_KEY: MODEL_KEY, OPENAI_BASE_URL: model.url },
      log: () => undefined,
    });
  };
  const kill = async () => {
    gateway.kill();
    await gateway.exited;
  };
  await start();
  return {
    dir,
    token: GATEWAY_TOKEN,
    modelUrl: model.url,
    port: () => port,
    play(script) {
      model.answer = script.modelAnswer;
      model.requests.length = 0;
    },
    modelCalls: () => model.requests.length,
    kill,
    start,
    pause: () => process.kill(gateway.pid, "SIGSTOP"),
    resume: () => process.kill(gateway.pid, "SIGCONT"),
    async stop() {
      await kill();
      await model.close();
    },
  };
}

/** The fake, for cells that are about something else. */
export async function startFake(folder: string): Promise<CellGateway> {
  const dir = mkdtempSync(join(folder, "gateway-"));
  for (const name of ["state", "home", "workspaces"]) mkdirSync(join(dir, name));
  const modelUrl = "http://127.0.0.1:1/v1";
  const park = () =>
    parkAgents({ ...PARK_SETTINGS, OPENCLAW_GATEWAY_DIR: dir, OPENAI_BASE_URL: modelUrl }, join(folder, "park.log"));
  await park();
  let gateway: FakeGateway = await startFakeGateway({ dir, token: GATEWAY_TOKEN });
  let before = 0;
  const cannot = () => {
    throw new Error("the fake gateway is no process of its own and can't be stopped");
  };
  return {
    dir,
    token: GATEWAY_TOKEN,
    modelUrl,
    port: () => gateway.port,
    play(script) {
      gateway.setAnswer(script.fakeAnswer);
      before = gateway.modelCalls.length;
    },
    modelCalls: () => gateway.modelCalls.length - before,
    kill: () => gateway.stop(),
    async start() {
      await park();
      gateway = await gateway.restart();
    },
    pause: cannot,
    resume: cannot,
    async stop() {
      await gateway.stop();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}
