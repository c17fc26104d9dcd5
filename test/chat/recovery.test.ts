import { afterEach, expect, test } from "bun:test";
import { resolve } from "node:path";
import { connectDatabase } from "../../src/db/connect.ts";
import type { FakeAnswer } from "../fakes/gateway.ts";
import { call, isAnswer, makeAssistant, makeUser, openChat } from "../factories.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";

let reef: TestReef;
const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

const gate = () => {
  const { promise, resolve: open } = Promise.withResolvers<void>();
  const answer: FakeAnswer = async function* () {
    yield { text: "First part, " };
    yield { wait: promise };
    yield { text: "second part." };
  };
  return { answer, open };
};

/** An API process that can be killed like one. */
async function startChild(
  env: Record<string, string>,
): Promise<{ url: string; pause(): void; resume(): void; kill(): Promise<void> }> {
  const probe = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  const port = String(probe.port);
  probe.stop(true);
  const child = Bun.spawn([process.execPath, "--no-env-file", resolve(import.meta.dir, "../../src/main.ts")], {
    env: { PATH: process.env["PATH"] ?? "", ...env, PORT: port },
    stdout: "ignore",
    stderr: "ignore",
  });
  const url = `http://127.0.0.1:${port}`;
  const kill = async () => {
    child.kill("SIGKILL");
    await child.exited;
  };
  closers.push(kill);
  await until(
    "the child is ready",
    () =>
      fetch(`${url}/readyz`).then(
        (answer) => answer.ok,
        () => false,
      ),
    15_000,
  );
  return { url, pause: () => child.kill("SIGSTOP"), resume: () => child.kill("SIGCONT"), kill };
}

async function expectOnce(userId: string, text: string): Promise<void> {
  const rows = await reef.sql`select role, content, finish from messages where user_id = ${userId} order by seq`;
  expect(rows.map((row) => [row["role"], row["content"], row["finish"]])).toEqual([
    ["user", "long", "complete"],
    ["assistant", text, "complete"],
  ]);
  const ledger = await reef.sql`select status from usage_logs where user_id = ${userId}`;
  expect(ledger.map((row) => row["status"])).toEqual(["committed"]);
  const turns = await reef.sql`select status from turns where user_id = ${userId}`;
  expect(turns.map((row) => row["status"])).toEqual(["done"]);
}

test("the API process is killed in mid-answer: another one takes over, answered, stored and charged once", async () => {
  reef = await startTestReef();
  closers.push(() => reef.stop());
  await reef.stopProcess();
  const first = await startChild(reef.env);
  const user = await makeUser(first);
  const assistant = await makeAssistant(user);
  const chat = await openChat(first, user.token, assistant.agent_id);
  const { answer, open } = gate();
  reef.gateway.setAnswer(answer);
  chat.say("long");
  await chat.next("the first part", (frame) => frame.type === "chunk");
  await first.kill();
  const second = await startProcess(reef.env);
  closers.push(() => second.stop());
  reef.sql = second.deps.sql;
  const again = await openChat(second, user.token, assistant.agent_id, "&after_seq=0");
  await until(
    "it is taken over",
    async () => (await reef.sql`select 1 from turns where user_id = ${user.id} and attempts = 2`).length === 1,
  );
  open();
  await again.next("the answer", isAnswer);
  await expectOnce(user.id, "First part, second part.");
  expect(reef.gateway.modelCalls.length).toBe(1);
  const text = again.frames
    .filter((frame) => frame.type === "chunk")
    .reduce((sofar, chunk) => (expect(chunk.offset).toBe(sofar.length), sofar + chunk.content), "");
  expect("First part, second part.".startsWith(text)).toBe(true);
});

test("a process that stood still is taken over; awake again it neither aborts nor ends what is another's", async () => {
  reef = await startTestReef();
  closers.push(() => reef.stop());
  await reef.stopProcess();
  const first = await startChild({ ...reef.env, TURN_BETWEEN_TEXT_MS: "2000" });
  const user = await makeUser(first);
  const assistant = await makeAssistant(user);
  const chat = await openChat(first, user.token, assistant.agent_id);
  const { answer, open } = gate();
  reef.gateway.setAnswer(answer);
  chat.say("long");
  await chat.next("the first part", (frame) => frame.type === "chunk");
  first.pause();
  const second = await startProcess(reef.env);
  closers.push(() => second.stop());
  reef.sql = second.deps.sql;
  const other = await openChat(second, user.token, assistant.agent_id, "&after_seq=0");
  await until(
    "it is taken over, and the first one's budget is over",
    async () =>
      (
        await reef.sql`select 1 from turns where user_id = ${user.id} and attempts = 2 and dispatched_at < now() - interval '3 seconds'`
      ).length === 1,
  );
  first.resume();
  // It answers again, so what its timers wanted to do has begun.
  await until("the first one lives", () =>
    fetch(`${first.url}/livez`).then(
      (response) => response.ok,
      () => false,
    ),
  );
  open();
  await Promise.all([other.next("the answer", isAnswer), chat.next("the answer", isAnswer)]);
  await expectOnce(user.id, "First part, second part.");
});

test("the API process is killed right after the ack: the message is answered by the next one", async () => {
  reef = await startTestReef();
  closers.push(() => reef.stop());
  await reef.stopProcess();
  const first = await startChild(reef.env);
  const user = await makeUser(first);
  const assistant = await makeAssistant(user);
  const sent = await call(
    first.url,
    "POST",
    `/api/assistants/${assistant.id}/messages`,
    { content: "long", client_id: crypto.randomUUID() },
    user.token,
  );
  await first.kill();
  expect(sent.status).toBe(202);
  const second = await startProcess(reef.env);
  closers.push(() => second.stop());
  reef.sql = second.deps.sql;
  await until(
    "it is answered",
    async () => (await reef.sql`select 1 from turns where user_id = ${user.id} and status = 'done'`).length === 1,
    20_000,
  );
  await expectOnce(user.id, "Echo: long");
});

test("the gateway is killed in mid-answer and comes back: the turn is sent again and answered once", async () => {
  reef = await startTestReef();
  closers.push(() => reef.stop());
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const chat = await openChat(reef, user.token, assistant.agent_id);
  const { answer } = gate();
  reef.gateway.setAnswer(answer);
  chat.say("long");
  await chat.next("the first part", (frame) => frame.type === "chunk");
  await reef.gateway.stop();
  reef.gateway = await reef.gateway.restart({
    answer: async function* () {
      yield { text: "First part, second part." };
    },
  });
  await chat.next("the answer", isAnswer);
  await expectOnce(user.id, "First part, second part.");
  expect(
    chat.frames
      .filter((frame) => frame.type === "chunk")
      .map((chunk) => chunk.content)
      .join(""),
  ).toBe("First part, second part.");
});

test("an orderly stop tells the sockets and leaves the turn to the next process", async () => {
  reef = await startTestReef();
  closers.push(() => reef.stop());
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const chat = await openChat(reef, user.token, assistant.agent_id);
  const { answer, open } = gate();
  reef.gateway.setAnswer(answer);
  chat.say("long");
  await chat.next("the first part", (frame) => frame.type === "chunk");
  const stopping = reef.stopProcess();
  await chat.next("the farewell", (frame) => frame.type === "disconnected" && frame.retry_after_ms > 0);
  await until("it is closed", () => chat.closed);
  expect(chat.closed!.code).toBe(1012);
  open();
  await stopping;
  const second = await startProcess(reef.env);
  closers.push(() => second.stop());
  reef.sql = second.deps.sql;
  await until(
    "it is answered",
    async () => (await reef.sql`select 1 from turns where user_id = ${user.id} and status = 'done'`).length === 1,
    20_000,
  );
  await expectOnce(user.id, "First part, second part.");
});

test("every database connection is cut in mid-answer: the process lives on, answered, stored and charged once", async () => {
  reef = await startTestReef();
  closers.push(() => reef.stop());
  await reef.stopProcess();
  const child = await startChild(reef.env);
  const user = await makeUser(child);
  const assistant = await makeAssistant(user);
  const chat = await openChat(child, user.token, assistant.agent_id);
  const { answer, open } = gate();
  reef.gateway.setAnswer(answer);
  chat.say("long");
  await chat.next("the first part", (frame) => frame.type === "chunk");
  reef.sql = connectDatabase(reef.env["DATABASE_URL"]!, { max: 1, name: "cutter" });
  closers.push(() => reef.sql.end());
  await reef.sql`select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()`;
  open();
  await chat.next("the answer", isAnswer);
  await expectOnce(user.id, "First part, second part.");
  expect((await fetch(`${child.url}/livez`)).ok).toBe(true);
});
