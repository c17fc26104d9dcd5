import { afterAll, beforeAll, setDefaultTimeout, test } from "bun:test";
import { freePort } from "../../scripts/services/process.ts";
import { loadConfig } from "../../src/config.ts";
import { createDeps, type Deps } from "../../src/deps.ts";
import { createLog } from "../../src/lib/log.ts";
import { canaryJob, clearCanaryLeak } from "../../src/services/canary.ts";
import { CANARY_AGENTS, renderGatewayConfig } from "../../src/services/gatewayConfig.ts";
import { runJob } from "../../src/services/jobs.ts";
import { until } from "../gateway/people.ts";
import { startStack, type Stack } from "../gateway/realGateway.ts";

setDefaultTimeout(120_000);

let stack: Stack;
let deps: Deps;
beforeAll(async () => {
  stack = await startStack({ CANARY_MODEL_URL: `http://127.0.0.1:${freePort()}` });
  // Nobody repairs the configuration: what is written here stays.
  await stack.stopReef();
  deps = createDeps(loadConfig(stack.env), createLog("silent"));
  await until("the gateway is connected", () => deps.gateway.isReady());
  for (const { agentId } of CANARY_AGENTS) await deps.workspaces.prepare({ agentId, displayName: null });
});
afterAll(async () => {
  await deps?.close();
  await stack?.close();
});

type Settings = Record<string, Record<string, unknown>>;
async function configure(weaken: (config: Settings) => void): Promise<void> {
  const config = JSON.parse(renderGatewayConfig(deps, CANARY_AGENTS)) as Settings;
  weaken(config);
  const before = (await deps.gateway.readConfigStatus()).hash;
  await deps.workspaces.writeConfig(JSON.stringify(config));
  await until("it is applied", async () => {
    const { valid, applied, hash } = await deps.gateway.readConfigStatus();
    return valid && applied && hash !== before;
  });
}
test("W1", async () => {
  await configure((config) => {
    if (process.env["W"] === "fs") config["tools"]!["fs"] = { workspaceOnly: false };
    else delete config["tools"];
  });
  const t = Date.now();
  console.log(await runJob({ ...deps, log: createLog("warn") }, canaryJob), Date.now() - t);
  const [row] = await stack.sql`select * from gateways`;
  console.log(row, clearCanaryLeak);
});
