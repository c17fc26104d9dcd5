import { afterEach, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createWorkspaces } from "../../src/clients/workspaces.ts";
import type { FakeAnswer } from "../fakes/gateway.ts";
import { isAnswer, makeAssistant, makeUser, openChat, type Json } from "../factories.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";

let reef: TestReef;
const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
  await reef.stop();
});

function gated(): { answer: FakeAnswer; open: () => void } {
  const { promise, resolve: open } = Promise.withResolvers<void>();
  const answer: FakeAnswer = async function* (turn) {
    if (turn.text.includes("wait")) {
      yield { text: "Well, " };
      yield { wait: promise };
    }
    yield { text: `answer to ${turn.text}` };
  };
  closers.push(open);
  return { answer, open };
}

const rowOf = async (id: string): Promise<Json> =>
  (await reef.sql`select state, status, purge_step as "purgeStep" from assistants where id = ${id}`)[0];
const untilAwake = (id: string) => until("it is awake", async () => (await rowOf(id)).state === "awake");
const repairs = async () => (await reef.sql`select drift_repairs as n from gateways`)[0]!["n"];
const openFor = async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  return { user, assistant, chat: await openChat(reef, user.token, assistant.agent_id) };
};

test("in a full set a sleeper gets the place as soon as the one that has it is done", async () => {
  reef = await startTestReef({ GATEWAY_WORKING_SET: "1" });
  const { answer, open } = gated();
  reef.gateway.setAnswer(answer);
  const first = await openFor();
  first.chat.say("wait");
  await first.chat.next("the first part", (frame) => frame.type === "chunk");
  const second = await openFor();
  second.chat.say("hello");
  await second.chat.next("its ack", (frame) => frame.type === "ack");
  open();
  expect(await second.chat.next("the answer", isAnswer)).toMatchObject({ content: "answer to hello" });
});

test("a long backlog does not keep its place in a full set from a sleeper whose message is older", async () => {
  reef = await startTestReef({ GATEWAY_WORKING_SET: "1" });
  const { answer, open } = gated();
  reef.gateway.setAnswer(answer);
  const first = await openFor();
  first.chat.say("wait");
  await first.chat.next("the first part", (frame) => frame.type === "chunk");
  const second = await openFor();
  second.chat.say("hello");
  await second.chat.next("its ack", (frame) => frame.type === "ack");
  for (let i = 0; i < 20; i++) first.chat.say(`more ${i}`);
  await until("all are accepted", () => first.chat.frames.filter((frame) => frame.type === "ack").length === 21);
  open();
  await second.chat.next("the answer", isAnswer);
  const [{ n }] = (await reef.sql`
    select count(*)::int as n from turns where user_id = ${first.user.id} and status = 'done'`) as Json;
  expect(n).toBe(1);
  await until("the backlog is answered", () => first.chat.frames.filter(isAnswer).length === 21, 20_000);
});

test("an assistant deleted while it answers is purged at once, and its id is never configured again", async () => {
  reef = await startTestReef();
  for (let round = 0; round < 6; round++) {
    const { answer, open } = gated();
    reef.gateway.setAnswer(answer);
    const { user, assistant, chat } = await openFor();
    chat.say("wait");
    await chat.next("the first part", (frame) => frame.type === "chunk");
    const { bootId } = reef.gateway;
    await user.call("DELETE", `/api/assistants/${assistant.id}`);
    await until("it is purged", async () => (await rowOf(assistant.id)).purgeStep === "purged");
    open();
    expect(reef.gateway.bootId).toBe(bootId);
    expect(reef.gateway.agents).toEqual(["reef_placeholder"]);
    expect(readFileSync(join(reef.dir, "openclaw.json"), "utf8")).not.toContain(assistant.agent_id);
    const keys = await reef.deps.redis.keys(`${reef.env["REDIS_PREFIX"]}turn:*`);
    expect(keys).toEqual([]);
  }
});

test("a workspace that can't be made: the person is told, nothing spins, others wake, and it wakes when it can", async () => {
  reef = await startTestReef();
  const real = reef.deps.workspaces.prepare.bind(reef.deps.workspaces);
  const { assistant, chat } = await openFor();
  await untilAwake(assistant.id);
  let tries = 0;
  reef.deps.workspaces.prepare = async (settings) => {
    if (settings.agentId !== assistant.agent_id) return real(settings);
    tries += 1;
    throw Object.assign(new Error("disk"), { code: "ENOSPC" });
  };
  const other = await openFor();
  await untilAwake(other.assistant.id);
  expect(await chat.next("it failed", (frame) => frame.state === "failed")).toMatchObject({ reason: "storage_full" });
  // Whatever wakes the reconciler now does not try that one again before its pause is over.
  for (let i = 0; i < 5; i++) await untilAwake((await openFor()).assistant.id);
  expect(tries).toBe(1);
  expect(chat.frames.filter((frame) => frame.state === "failed").length).toBe(1);
  reef.deps.workspaces.prepare = real;
  await reef.sql`update assistants set failed_at = now() - interval '1 minute' where id = ${assistant.id}`;
  chat.say("hello");
  await chat.next("the answer", isAnswer);
});

test("what can't be erased holds up nobody else", async () => {
  reef = await startTestReef();
  const { user, assistant } = await openFor();
  await untilAwake(assistant.id);
  const purge = reef.deps.workspaces.purge.bind(reef.deps.workspaces);
  reef.deps.workspaces.purge = () => Promise.reject(new Error("disk"));
  rmSync(join(reef.dir, "state", "media", "inbound"), { recursive: true, force: true });
  mkdirSync(join(reef.dir, "state", "media"), { recursive: true });
  writeFileSync(join(reef.dir, "state", "media", "inbound"), "not a folder");
  await user.call("DELETE", `/api/assistants/${assistant.id}`);
  await until("it is to be erased", async () => (await rowOf(assistant.id)).purgeStep === "erasing");
  await untilAwake((await openFor()).assistant.id);
  expect((await rowOf(assistant.id)).purgeStep).toBe("erasing");
  reef.deps.workspaces.purge = purge;
  rmSync(join(reef.dir, "state", "media", "inbound"));
  await openFor();
  await until("it is erased", async () => (await rowOf(assistant.id)).purgeStep === "purged");
});

test("a hand edit is put back and counted; our own writes, of two processes, are not", async () => {
  reef = await startTestReef();
  const second = await startProcess(reef.env);
  closers.push(() => second.stop());
  for (const url of [reef.url, second.url, reef.url, second.url]) {
    const user = await makeUser({ url });
    const { id } = (await user.call("POST", "/api/assistants", {})).body;
    await untilAwake(id);
  }
  expect(await repairs()).toBe(0);
  const path = join(reef.dir, "openclaw.json");
  const ours = readFileSync(path, "utf8");
  writeFileSync(path, ours.replace('"allow": [', '"allow": [ "exec",'));
  const user = await makeUser(reef);
  await untilAwake((await makeAssistant(user)).id);
  await until("it is counted", async () => (await repairs()) === 1);
  expect(readFileSync(path, "utf8")).not.toContain('"exec"');
});

test("a process that stands still in the middle of a pass keeps nobody asleep", async () => {
  reef = await startTestReef();
  const { assistant } = await openFor();
  await untilAwake(assistant.id);
  const standing = Promise.withResolvers<void>();
  const held = Promise.withResolvers<void>();
  closers.push(() => held.resolve());
  // As SIGSTOP does: the pass has the lock and its process says nothing more, pings included.
  await reef.stopProcess();
  reef.sql = (await import("../../src/db/connect.ts")).connectDatabase(reef.env["DATABASE_URL"]!, {
    max: 2,
    name: "watch",
  });
  closers.push(() => reef.sql.end());
  const holder = reef.sql
    .begin(async (tx) => {
      await tx`select pg_advisory_xact_lock(hashtext('reef'), hashtext('reconciler:main')),
        set_config('idle_in_transaction_session_timeout', '1000', true)`;
      standing.resolve();
      await held.promise;
    })
    .catch(() => "lost");
  await standing.promise;
  const second = await startProcess(reef.env);
  closers.push(() => second.stop());
  const user = await makeUser(second);
  await untilAwake((await user.call("POST", "/api/assistants", {})).body.id);
  held.resolve();
  expect(await holder).toBe("lost");
});

test("parking leaves what is no agent alone and never hides a conversation behind another", async () => {
  reef = await startTestReef();
  const agents = join(reef.dir, "state", "agents");
  for (const name of ["agent_one", "agent_two", ".tmp", "Not An Agent"])
    mkdirSync(join(agents, name), { recursive: true });
  mkdirSync(join(reef.dir, "parked", "agent_two"), { recursive: true });
  await createWorkspaces(reef.dir, reef.deps.log).parkAll();
  expect(readdirSync(agents).toSorted()).toEqual([".tmp", "Not An Agent", "agent_two"]);
  expect(existsSync(join(reef.dir, "parked", "agent_one"))).toBe(true);
  expect(reef.logs.some((line) => line.includes("state twice"))).toBe(true);
});
