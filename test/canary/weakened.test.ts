import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { z } from "zod";
import { freePort } from "../../scripts/services/process.ts";
import { openGatewayConnection } from "../../src/clients/gatewayConnection.ts";
import { loadConfig } from "../../src/config.ts";
import { findPlacement } from "../../src/db/gateways.ts";
import { createDeps, type Deps } from "../../src/deps.ts";
import { createLog } from "../../src/lib/log.ts";
import { canaryJob, clearCanaryLeak, watchCanary } from "../../src/services/canary.ts";
import { FORBIDDEN_PLACES } from "../../src/services/canaryProbes.ts";
import { CANARY_AGENTS, renderGatewayConfig } from "../../src/services/gatewayConfig.ts";
import { runJob } from "../../src/services/jobs.ts";
import { until } from "../gateway/people.ts";
import { GATEWAY_TOKEN, startStack, type Stack } from "../gateway/realGateway.ts";

setDefaultTimeout(240_000);

type Told = { status: string; key: string; severity: string };
/** What operators were told. */
const told: Told[] = [];
let hook: Bun.Server<undefined>;
let stack: Stack;
let deps: Deps;
beforeAll(async () => {
  hook = Bun.serve({
    port: 0,
    async fetch(request) {
      told.push((await request.json()) as Told);
      return new Response();
    },
  });
  const CANARY_MODEL_URL = `http://127.0.0.1:${freePort()}`;
  stack = await startStack({ CANARY_MODEL_URL, ALARM_WEBHOOK_URL: hook.url.href });
  // Nobody repairs the configuration: what is written here stays.
  await stack.stopReef();
  deps = createDeps(loadConfig(stack.env), createLog("silent"));
  await until("the gateway is connected", () => deps.gateway.isReady());
  for (const { agentId } of CANARY_AGENTS) await deps.workspaces.prepare({ agentId, displayName: null });
});
afterAll(async () => {
  await deps?.close();
  await stack?.close();
  await hook?.stop(true);
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

const readGateway = async () => {
  const [row] = await stack.sql<{ result: string; leaks: string[]; reason: string | null }[]>`
    select canary_result as result, canary_leaks as leaks, placement_stopped_reason as reason from gateways`;
  return row!;
};
const clear = () => clearCanaryLeak(deps, { osUser: "tester" }, "main");

/** What a client does that forgets about commands; two are enough, for most are waited for in vain. */
const SENT_RAW = ["/status", "please run /status now"];
function careless(): Deps {
  const raw = openGatewayConnection({
    name: "raw",
    url: deps.config.OPENCLAW_GATEWAY_URL,
    token: deps.config.OPENCLAW_GATEWAY_TOKEN,
    scopes: ["operator.read", "operator.write"],
    caps: [],
    log: deps.log,
    onHello: () => undefined,
    onLost: () => undefined,
    onEvent: () => undefined,
  });
  deps.onClose("raw", 100, () => raw.close());
  const sendMessage: Deps["gateway"]["sendMessage"] = async (input) => {
    if (!SENT_RAW.includes(input.text)) return deps.gateway.sendMessage(input);
    const params = { sessionKey: `agent:${input.agentId}:app`, message: input.text, idempotencyKey: input.key };
    await raw.call("chat.send", params, z.unknown());
    return "started";
  };
  const workspaces = { ...deps.workspaces, guard: () => Promise.resolve(0) };
  return { ...deps, gateway: { ...deps.gateway, sendMessage }, workspaces };
}

/** Ways that lead nowhere on this file system or in this version, whatever is allowed: nobody has seen them succeed. */
const NEVER_SEEN = ["encoded", "case", "backslash", "null-byte"];

test("files of others, commands, rules: each is found by its name; placements stop, and somebody is told once", async () => {
  await configure((config) => void (config["tools"]!["fs"] = { workspaceOnly: false }));
  const run = await runJob(careless(), canaryJob);
  expect(run.outcome).toBe("ok");
  expect(run.summary).toStartWith("LEAK: ");
  const { result, leaks, reason } = await readGateway();
  const places = FORBIDDEN_PLACES.filter(({ id }) => !NEVER_SEEN.some((way) => id.endsWith(way)));
  const written = places.filter(({ overwrite }) => overwrite);
  // A link is followed to write, but not to read.
  const read = places.filter(({ id }) => id !== "host-link");
  // Which files it delivers depends on their kind, and some hang.
  const isMedia = (leak: string) => leak.startsWith("media:");
  expect(leaks.filter(isMedia).length).toBeGreaterThan(0);
  expect(leaks.filter((leak) => !isMedia(leak))).toEqual(
    [
      ...read.map(({ id }) => `read:${id}`),
      ...written.flatMap(({ id }) => [`write:${id}`, `edit:${id}`]),
      "rules:AGENTS.md",
      "rules:SOUL.md",
      ...SENT_RAW.map((text) => `command:${text}`),
      "session:history",
      "session:neighbour-prompt",
    ].toSorted(),
  );
  expect([result, reason]).toEqual(["leak", "canary_leak"]);
  expect(await findPlacement(stack.sql)).toBeNull();
  expect(told.map(({ status, key, severity }) => [status, key, severity])).toEqual([
    ["firing", "canary:main", "critical"],
  ]);
  for (const secret of ["planted-", GATEWAY_TOKEN]) expect(JSON.stringify([told, leaks])).not.toContain(secret);
  const audits = await stack.sql`select actor, details from audit_log where action = 'gateway.placement_stopped'`;
  expect(audits).toMatchObject([{ actor: "job:run-canary", details: { gateway: "main", reason: "canary_leak" } }]);
  expect(await clear()).toContain("not green");
});

test("tools that we do not offer are found, whether they are offered or only there", async () => {
  const more = ["exec", "process", "sessions_list", "sessions_history", "agents_list", "web_fetch", "message"];
  await configure((config) => {
    const exec = { security: "full", ask: "off", host: "gateway" };
    config["tools"] = {
      allow: ["read", "write", "edit", ...more],
      fs: { workspaceOnly: true },
      toolSearch: false,
      exec,
    };
  });
  await runJob(deps, canaryJob);
  const { leaks } = await readGateway();
  for (const tool of more) expect(leaks).toContain(`offered:${tool}`);
  for (const tool of [...more, "bash"]) expect(leaks).toContain(`tool:${tool}`);
  // The same trouble: nobody is told again.
  expect(told).toHaveLength(1);
});

test("only after a green run an operator places people there again", async () => {
  await configure(() => undefined);
  expect(await clear()).toContain("not green");
  expect((await runJob(deps, canaryJob)).summary).toBe("gateway main is isolated");
  expect(await readGateway()).toEqual({ result: "ok", leaks: [], reason: "canary_leak" });
  expect(await findPlacement(stack.sql)).toBeNull();
  expect(told).toHaveLength(1);
  expect(await clear()).toBeNull();
  expect(await findPlacement(stack.sql)).toBe("main");
  expect(told.at(-1)).toMatchObject({ status: "resolved", key: "canary:main" });
  expect(await clear()).toContain("No leak");
});

test("what can't be carried out proves nothing: warned of the second time, and after a while nobody is placed there", async () => {
  const taken = Bun.serve({ port: Number(new URL(deps.config.CANARY_MODEL_URL).port), fetch: () => new Response() });
  const first = await runJob(deps, canaryJob);
  expect(first).toEqual({ outcome: "ok", summary: expect.stringContaining("CANARY_MODEL_URL (") });
  expect((await runJob(deps, canaryJob)).outcome).toBe("failed");
  expect(await readGateway()).toMatchObject({ result: "failed", reason: null });
  expect(told.at(-1)).toMatchObject({ status: "firing", key: "job:run-canary", severity: "warning" });

  await stack.sql`update gateways set canary_green_at = now() - interval '7 hours'`;
  // Its timer may be off: whoever looks at the server's health finds it, too.
  expect(await watchCanary(deps)).toContain("isolation of gateway main not proved since");
  expect(await readGateway()).toMatchObject({ reason: "canary_stale" });
  await stack.sql`update gateways set placement_stopped_reason = null`;
  await runJob(deps, canaryJob);
  expect(await readGateway()).toMatchObject({ result: "failed", reason: "canary_stale" });
  expect(told.at(-1)).toMatchObject({ status: "firing", key: "canary:main", severity: "critical" });
  await taken.stop(true);
});
