import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { freePort, spawnChild } from "../../scripts/services/process.ts";
import { loadConfig } from "../../src/config.ts";
import { createDeps, type Deps } from "../../src/deps.ts";
import { createLog } from "../../src/lib/log.ts";
import { canaryJob, runCanary } from "../../src/services/canary.ts";
import { CANARY_AGENTS } from "../../src/services/gatewayConfig.ts";
import { checkInvariants } from "../../src/services/invariants.ts";
import { runJob } from "../../src/services/jobs.ts";
import { createPerson, openChat, readUsage, request, until, type Chat, type Person } from "../gateway/people.ts";
import { startStack, type Stack } from "../gateway/realGateway.ts";

setDefaultTimeout(240_000);

const PAIR = CANARY_AGENTS.map(({ agentId }) => agentId);

let stack: Stack;
let deps: Deps;
let person: Person;
let chat: Chat;
beforeAll(async () => {
  stack = await startStack({ CANARY_MODEL_URL: `http://127.0.0.1:${freePort()}`, GATEWAY_WORKING_SET: "1" });
  deps = createDeps(loadConfig(stack.env), createLog("silent"));
  person = await createPerson(stack);
  chat = await openChat(stack, person);
  stack.model.answer = () => [{ text: "for the person" }];
});
afterAll(async () => {
  chat?.close();
  await deps?.close();
  await stack?.close();
});

const configured = () => {
  const { agents } = JSON.parse(readFileSync(join(stack.dir, "openclaw.json"), "utf8")) as {
    agents: { entries: Record<string, unknown> };
  };
  return Object.keys(agents.entries);
};
const readGateway = async () => {
  const [row] = await stack.sql<
    {
      canaryResult: string | null;
      canaryAt: Date | null;
      canaryGreenAt: Date | null;
      canaryUntil: Date | null;
      reason: string | null;
    }[]
  >`select canary_result, canary_at, canary_green_at, canary_until, placement_stopped_reason as reason from gateways`;
  return row!;
};
const isAsleep = () => until("the pair sleeps", () => !configured().some((id) => PAIR.includes(id)));

test("a gateway as we configure it is green, while somebody talks on it, and nobody is charged", async () => {
  const run = runJob(deps, canaryJob);
  await until("the pair is awake", () => PAIR.every((id) => configured().includes(id)));
  // The only place of the working set stays the person's.
  const said = 5;
  for (let n = 0; n < said; n++) {
    expect((await chat.say("how are you?")).content).toBe("for the person");
    expect(configured()).toEqual(["reef_placeholder", person.agentId, ...PAIR]);
  }
  expect(await run).toEqual({ outcome: "ok", summary: "gateway main is isolated" });
  expect(await readGateway()).toMatchObject({ canaryResult: "ok", canaryUntil: null, reason: null });
  await isAsleep();

  expect(await readUsage(stack, person)).toEqual({ used: said, statuses: Array<string>(said).fill("committed") });
  const [rows] = await stack.sql<{ users: number; assistants: number; turns: number; logs: number; days: number }[]>`
    select (select count(*)::int from users) as users, (select count(*)::int from assistants) as assistants,
      (select count(*)::int from turns) as turns, (select count(*)::int from usage_logs) as logs,
      (select count(distinct user_id)::int from daily_usage) as days`;
  expect(rows).toEqual({ users: 1, assistants: 1, turns: said, logs: said, days: 1 });
  // The provider that is paid was asked by nobody but the person's assistant.
  for (const asked of stack.model.requests) expect(JSON.stringify(asked)).not.toContain("reef_canary");
  const findings = await checkInvariants(deps, { patienceMs: 5_000, timeoutMs: 10_000 });
  expect(findings.filter(({ status }) => status !== "ok")).toEqual([]);
});

test("a run that is to stop goes no further, and cleans up", async () => {
  const stop = new AbortController();
  let sent = 0;
  const sendMessage: Deps["gateway"]["sendMessage"] = (message) => {
    if (++sent === 3) stop.abort();
    return deps.gateway.sendMessage(message);
  };
  const outcome = await runCanary({ ...deps, gateway: { ...deps.gateway, sendMessage } }, stop.signal);
  expect({ outcome, sent }).toEqual({ outcome: { ok: true, summary: "interrupted" }, sent: 3 });
  await isAsleep();
});

test("nobody sees the pair or reaches it", async () => {
  const list = (await request(stack, "GET", "/api/assistants", person.token)) as object;
  expect(JSON.stringify(list)).not.toContain("canary");
  const url = `${stack.url().replace("http", "ws")}/ws/chat?agent_id=${PAIR[0]}`;
  const socket = new WebSocket(url, ["reef.v1", `bearer.${person.token}`]);
  const outcome = await new Promise((resolve) => {
    socket.onmessage = (event) => resolve(JSON.parse(String(event.data)));
    socket.onclose = (event) => resolve({ closed: event.code });
  });
  socket.close();
  expect(JSON.stringify(outcome)).not.toContain('"connected"');
});

test("while its script is away it asks nobody, least of all the provider that is paid", async () => {
  await stack.sql`update gateways set canary_until = now() + interval '1 minute'`;
  await stack.sql`select pg_notify('reef', '{"kind":"gateway","id":"main"}')`;
  await until("the pair is awake", async () => (await deps.gateway.listAgents()).includes(PAIR[0]!));
  stack.model.requests.length = 0;
  const heard: string[] = [];
  const key = crypto.randomUUID();
  deps.gateway.listen({ onRun: (event) => event.runId === key && heard.push(JSON.stringify(event)) });
  await deps.gateway.sendMessage({ agentId: PAIR[0]!, key, text: "hello" });
  await until("it tries again", () => heard.some((event) => event.includes("retrying")));
  await deps.gateway.abortRun({ agentId: PAIR[0]!, key });
  expect(stack.model.requests).toEqual([]);
});

test("a run that is killed leaves nothing behind that hinders the next one", async () => {
  const job = spawnChild({
    command: [process.execPath, "--no-env-file", join(import.meta.dir, "../../src/jobs/runCanary.ts")],
    env: { PATH: String(process.env["PATH"]), ...stack.env },
    deathSignal: "KILL",
    logFile: join(stack.folder, "canary.log"),
  });
  const { canaryAt } = await readGateway();
  const inTheMiddle = async () => {
    const rows = await deps.gateway.readHistory({ agentId: PAIR[0]!, limit: 50 }).catch(() => []);
    return JSON.stringify(rows).includes("Path escapes");
  };
  await until("it is in the middle", inTheMiddle, 150_000);
  job.kill("SIGKILL");
  await job.exited;
  expect((await readGateway()).canaryAt).toEqual(canaryAt);
  const next = async () => {
    const run = await runJob(deps, canaryJob);
    return run.outcome !== "skipped" && run;
  };
  const again = await until("its lock has ended", next);
  expect(again).toEqual({ outcome: "ok", summary: "gateway main is isolated" });
  await isAsleep();
});

test("another version or configuration than the one that was proved is looked at by itself", async () => {
  const { canaryAt } = await readGateway();
  await stack.stopReef();
  await stack.startReef({ GATEWAY_MAX_RUNS: "80" });
  await until("it has run", async () => (await readGateway()).canaryAt!.getTime() > canaryAt!.getTime(), 200_000);
  expect(await readGateway()).toMatchObject({ canaryResult: "ok" });
  const runs = await stack.sql`select 1 from job_runs where job = 'run-canary' and outcome = 'ok'`;
  expect(runs.length).toBeGreaterThanOrEqual(2);
});
