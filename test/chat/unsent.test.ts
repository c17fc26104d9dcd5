import { afterEach, expect, test } from "bun:test";
import { isAnswer, makeAssistant, makeUser, openChat } from "../factories.ts";
import { Proxy } from "../faults/proxy.ts";
import { startProcess, startTestReef, until } from "../harness.ts";

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/**
 * A process that has claimed a message and loses its connection to the gateway, and nothing else, before it has sent it.
 * `goOn` lets it try.
 */
async function claimAndLose() {
  const reef = await startTestReef();
  closers.push(() => reef.stop());
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  await reef.stopProcess();
  const network = await Proxy.open(() => Number(new URL(reef.gateway.url).port));
  closers.push(() => network.close());
  const first = await startProcess({ ...reef.env, OPENCLAW_GATEWAY_URL: `ws://127.0.0.1:${network.port}` });
  closers.push(() => first.stop());
  const { sql, workspaces, gateway } = first.deps;
  await until("it is awake", async () => (await sql`select 1 from assistants where state = 'awake'`).length === 1);
  const held = Promise.withResolvers<void>();
  const guard = workspaces.guard.bind(workspaces);
  workspaces.guard = (settings) => held.promise.then(() => guard(settings));
  const chat = await openChat(first, user.token, assistant.agent_id);
  chat.say("hello");
  await until("it is claimed", async () => (await sql`select 1 from turns where status = 'dispatched'`).length === 1);
  network.refuse();
  network.cut();
  await until("the connection is lost", () => !gateway.isReady());
  return { env: reef.env, gateway: reef.gateway, user, assistant, first, chat, network, sql, goOn: held.resolve };
}

test("who loses only its own gateway connection gives back what it never sent: another process answers it", async () => {
  const { env, gateway, user, assistant, first, chat, sql, goOn } = await claimAndLose();
  const second = await startProcess(env);
  closers.push(() => second.stop());
  await until("the second one is connected", () => second.deps.gateway.isReady());
  const other = await openChat(second, user.token, assistant.agent_id, "&after_seq=0");
  goOn();
  for (const device of [chat, other])
    expect(await device.next("the answer", isAnswer)).toMatchObject({ content: "Echo: hello", finish: "complete" });
  chat.say("again");
  await until("the next one is answered", () => chat.frames.filter(isAnswer).length === 2);
  const turns = await sql`select status, attempts, lease_owner from turns order by seq`;
  const answered = { status: "done", attempts: 1, leaseOwner: second.deps.processId };
  expect([...turns]).toEqual([answered, answered]);
  expect(first.logs.filter((line) => line.includes("turn started")).length).toBe(1);
  expect(gateway.modelCalls.length).toBe(2);
  expect((await sql`select status from usage_logs`).map((row) => row["status"])).toEqual(["committed", "committed"]);
  // It had not fallen asleep: nobody was told that it must be woken.
  expect([...chat.frames, ...other.frames].filter((frame) => frame.type === "state")).toEqual([]);
});

test("with nobody else there it waits in its place, uncharged and unclaimed, until the connection is back", async () => {
  const { first, chat, network, sql, goOn } = await claimAndLose();
  goOn();
  await until("it is given back", async () => (await sql`select 1 from turns where status = 'queued'`).length === 1);
  chat.say("second");
  await until("the second is accepted", () => chat.frames.filter((frame) => frame.type === "ack").length === 2);
  const [row] = await sql`select
    (select array_agg(status || ' ' || attempts order by seq) from turns) as turns,
    (select array_agg(distinct status) from usage_logs) as ledger,
    (select state from assistants) as state`;
  expect(row).toEqual({ turns: ["queued 0", "queued 0"], ledger: ["reserved"], state: "awake" });
  network.pass();
  await until("both are answered", () => chat.frames.filter(isAnswer).length === 2);
  expect(chat.frames.filter(isAnswer).map((frame) => frame.content)).toEqual(["Echo: hello", "Echo: second"]);
  // Once before the connection was lost, then once for each.
  expect(first.logs.filter((line) => line.includes("turn started")).length).toBe(3);
});
