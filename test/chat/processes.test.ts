import { afterEach, expect, test } from "bun:test";
import { keepApplication } from "../../scripts/services/application.ts";
import { freePort } from "../../scripts/services/process.ts";
import type { Run } from "../../scripts/services/run.ts";
import { connectDatabase } from "../../src/db/connect.ts";
import { isAnswer, makeAssistant, makeUser, openChat, type Chat, type Json, type TestUser } from "../factories.ts";
import { ApiProcess } from "../faults/apiProcess.ts";
import { GoodClient } from "../faults/goodClient.ts";
import { Script } from "../faults/script.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";

const PARTS = ["First part, ", "second part, ", "third part."];

let reef: TestReef;
const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** Somebody whose assistant is awake, on a first process that has the gateway. */
async function start(overrides: Record<string, string> = {}): Promise<{ user: TestUser; assistant: Json }> {
  reef = await startTestReef(overrides);
  closers.push(() => reef.stop());
  return makePerson();
}

async function makePerson(): Promise<{ user: TestUser; assistant: Json }> {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  await until("it is awake", async () => {
    const rows = await reef.sql`select 1 from assistants where id = ${assistant.id} and state = 'awake'`;
    return rows.length === 1;
  });
  return { user, assistant };
}

/** Everybody is shown the text so far, and it is the first process that runs the turn. */
async function expectRunning(chats: Chat[], text: string): Promise<void> {
  await expectShown(chats, text);
  const rows = await reef.sql`select lease_owner from turns where status in ('dispatched', 'streaming')`;
  expect(rows.map((row) => row["leaseOwner"])).toEqual([reef.deps.processId]);
}

/** A script that the model follows. */
function play(): Script {
  const script = new Script(PARTS);
  closers.push(() => script.open());
  reef.gateway.setAnswer(script.fakeAnswer);
  return script;
}

/** A first process that runs all turns, and another one that only has sockets. */
async function startPair(): Promise<{ user: TestUser; assistant: Json; other: { url: string }; script: Script }> {
  const person = await start();
  const other = await startProcess(reef.env);
  closers.push(() => other.stop());
  other.deps.gateway.isReady = () => false;
  return { ...person, other, script: play() };
}

/** The chunks of a connection put together; their offsets must have neither gap nor overlap. */
function shown(chat: Chat): string {
  return chat.frames
    .filter((frame) => frame.type === "chunk")
    .reduce((text, chunk) => (expect(chunk.offset).toBe(text.length), text + chunk.content), "");
}

async function expectShown(chats: Chat[], text: string): Promise<void> {
  for (const chat of chats) await until(`"${text}" is shown`, () => shown(chat).trimEnd() === text);
}

/** What a device has seen of the conversation, in order: numbers of messages, and the text of chunks glued together. */
function story(chat: Chat): (number | string)[] {
  const seen: (number | string)[] = [];
  for (const frame of chat.frames) {
    if (frame.type === "message") seen.push(frame.seq);
    if (frame.type !== "chunk") continue;
    if (typeof seen.at(-1) === "string") seen.push(`${seen.pop()}${frame.content}`);
    else seen.push(frame.content);
  }
  return seen;
}

/** The messages in order, the answer's chunks before it. To another process the stored answer may be faster than its last chunk. */
function expectStory(chat: Chat, script: Script, messages: number[]): void {
  const seen = story(chat);
  expect(seen.filter((part) => typeof part === "number")).toEqual(messages);
  expect(typeof seen.at(-2)).toBe("string");
  expect(script.text()).toStartWith(String(seen.at(-2)));
}

test("a socket on one process, the turn on another: every frame in order on both devices", async () => {
  const { user, assistant, other, script } = await startPair();
  const phone = await openChat(other, user.token, assistant.agent_id);
  const tablet = await openChat(reef, user.token, assistant.agent_id);
  phone.say("tell me");
  for (let parts = 1; parts < PARTS.length; parts++) {
    script.open(parts);
    await expectRunning([phone, tablet], script.text(parts));
  }
  script.open();
  for (const chat of [phone, tablet]) {
    expect(await chat.next("the answer", isAnswer)).toMatchObject({
      seq: 2,
      content: script.text(),
      finish: "complete",
    });
    expectStory(chat, script, [1, 2]);
    expect(chat.frames.filter((frame) => frame.type === "error")).toEqual([]);
  }
});

test("stop at the other process stops it for both devices", async () => {
  const { user, assistant, other, script } = await startPair();
  const phone = await openChat(other, user.token, assistant.agent_id);
  const tablet = await openChat(reef, user.token, assistant.agent_id);
  tablet.say("tell me");
  script.open(1);
  await expectRunning([phone, tablet], script.text(1));
  phone.send({ type: "stop" });
  const end = { seq: 2, content: script.text(1), finish: "stopped" };
  for (const chat of [phone, tablet]) {
    expect(await chat.next("its end", isAnswer)).toMatchObject(end);
    expect(story(chat)).toEqual([1, expect.any(String), 2]);
  }
  expect(reef.gateway.running).toEqual([]);
});

test("who comes back to another process in mid-answer gets the text so far, no hole and no overlap", async () => {
  const { user, assistant, other, script } = await startPair();
  const phone = await openChat(reef, user.token, assistant.agent_id);
  const tablet = await openChat(reef, user.token, assistant.agent_id);
  phone.say("tell me");
  script.open(1);
  await expectRunning([phone, tablet], script.text(1));
  phone.close();
  script.open(2);
  await expectShown([tablet], script.text(2));
  const again = await openChat(other, user.token, assistant.agent_id, "&after_seq=1");
  await expectShown([again], script.text(2));
  // On the same connection, too, nothing is sent twice.
  again.send({ type: "resume", after_seq: 1 });
  script.open(3);
  await expectShown([tablet], script.text());
  expect(await again.next("the answer", isAnswer)).toMatchObject({ seq: 2, content: script.text() });
  expectStory(again, script, [2]);
});

test("a process is killed in mid-answer: the other has its turn within five seconds and answers it once", async () => {
  const leaseMs = 3_000; // the default
  const { user, assistant } = await start({ TURN_LEASE_MS: String(leaseMs) });
  const script = play();
  const first = new ApiProcess("first", reef.env, reef.dir);
  closers.push(() => first.kill());
  await first.start();
  await first.ready();
  const { gateway, processId } = reef.deps;
  const isReady = gateway.isReady.bind(gateway);
  gateway.isReady = () => false;
  const phone = await openChat(first, user.token, assistant.agent_id);
  const tablet = await openChat(reef, user.token, assistant.agent_id);
  phone.say("tell me");
  script.open(1);
  await expectShown([phone, tablet], script.text(1));
  gateway.isReady = isReady;
  const [before] = await reef.sql`select lease_owner, attempts, now() as at from turns where user_id = ${user.id}`;
  expect(before).toMatchObject({ attempts: 1, leaseOwner: expect.not.stringContaining(processId) });
  await first.kill();
  const taken = await until("it is taken over", async () => {
    const rows = await reef.sql`
      select lease_until - make_interval(secs => ${leaseMs / 1000}) as at from turns
      where user_id = ${user.id} and attempts = 2 and lease_owner = ${processId}`;
    return rows[0];
  });
  expect(Number(taken["at"]) - Number(before!["at"])).toBeLessThan(5_000);
  const again = await openChat(reef, user.token, assistant.agent_id, "&after_seq=1");
  script.open();
  for (const chat of [tablet, again])
    expect(await chat.next("the answer", isAnswer)).toMatchObject({
      seq: 2,
      content: script.text(),
      finish: "complete",
    });
  expect(story(tablet)).toEqual([1, script.text(), 2]);
  expectStory(again, script, [2]);
  expect(reef.gateway.modelCalls.length).toBe(1);
  const charged = await reef.sql`select status from usage_logs where user_id = ${user.id}`;
  expect(charged.map((row) => row["status"])).toEqual(["committed"]);
});

/** Connects, asks once and ends, again and again, from several hands at once; tells what was not answered. */
function knock(port: number, hands: number): { stop(): Promise<{ answered: number; failed: string[] }> } {
  let stopped = false;
  let answered = 0;
  const failed: string[] = [];
  const once = (): Promise<void> => {
    const { promise, resolve } = Promise.withResolvers<void>();
    let text = "";
    const end = (how: string) => {
      if (text.startsWith("HTTP/1.1 200")) answered++;
      else failed.push(`${how}: ${text}`);
      resolve();
    };
    const socket = {
      open: (connection: Bun.Socket) =>
        void connection.write("GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
      data: (_: unknown, bytes: Buffer) => void (text += bytes.toString()),
      close: (_: unknown, error?: Error) => end(error ? error.message : "closed"),
    };
    Bun.connect({ hostname: "127.0.0.1", port, socket }).catch((error: Error) => end(error.message));
    return promise;
  };
  const hand = async () => {
    while (!stopped) await once();
  };
  const all = Promise.all(Array.from({ length: hands }, hand));
  return {
    async stop() {
      stopped = true;
      await all;
      return { answered, failed };
    },
  };
}

/** Two real processes on one port, as `npm start -- --processes 2` keeps them. */
async function startApplication(port: number): Promise<{ replaceAll(): Promise<void> }> {
  let stopping = false;
  let stopAll = (): Promise<void> => Promise.resolve();
  const run: Run = {
    say: () => undefined,
    add: (_, part) => void (stopAll = () => part.stop()),
    waitFor: (_, work) => work,
    ready: () => undefined,
    stopping: () => stopping,
    stop: (code, why) => Promise.reject(new Error(`${code} ${why}`)),
  };
  closers.push(() => ((stopping = true), stopAll()));
  const env = { PATH: process.env["PATH"], ...reef.env, PORT: String(port) };
  return keepApplication(run, { host: "127.0.0.1", port, env, folder: reef.dir, logs: false, processes: 2 });
}

/** A person with two devices, who says something more whenever the last was answered. */
function chatOn(port: number, { user, assistant }: { user: TestUser; assistant: Json }) {
  const servers = [`ws://127.0.0.1:${port}/ws/chat`];
  const options = { servers, token: user.token, agentId: assistant.agent_id };
  const devices = [new GoodClient(options), new GoodClient(options)];
  closers.push(() => devices.forEach((device) => device.close()));
  let said = 0;
  const answered = () => devices.every((device) => device.messages.length === said * 2);
  const talking = setInterval(() => answered() && devices[said % 2]!.send(`message ${++said}`), 20);
  const hush = async () => {
    clearInterval(talking);
    await until("all is answered", () => answered() && devices.every((device) => device.outbox.length === 0), 15_000);
    return said;
  };
  return { user, devices, hush };
}

test("a rolling restart loses no frame, refuses and resets no connection, and spreads who comes back", async () => {
  const people = [await start(), await makePerson(), await makePerson()];
  await reef.stopProcess();
  const sql = connectDatabase(reef.env["DATABASE_URL"]!, { max: 1, name: "truth" });
  closers.push(() => sql.end());
  reef.gateway.setAnswer(async function* (turn) {
    for (const text of ["You said: ", turn.text, ", and that ", "was it."]) {
      yield { text };
      yield { delayMs: 15 };
    }
  });
  const port = freePort();
  const application = await startApplication(port);
  const chats = people.map((person) => chatOn(port, person));
  await until("all are connected", () => chats.every(({ devices }) => devices.every((device) => device.connected)));
  const knocking = knock(port, 8);
  await application.replaceAll();
  const { answered, failed } = await knocking.stop();
  expect(failed).toEqual([]);
  expect(answered).toBeGreaterThan(100);
  const said = await Promise.all(chats.map((chat) => chat.hush()));
  for (const { user, devices } of chats) {
    const rows = await sql`select seq::int, content from messages where user_id = ${user.id} order by seq`;
    const truth = rows.map((row) => [row["seq"], row["content"]]);
    for (const device of devices) {
      expect(device.faults).toEqual([]);
      expect(device.refused).toEqual([]);
      expect(device.messages.map((message) => [message.seq, message.content])).toEqual(truth);
      expect(device.pausesMs.length).toBeGreaterThan(0);
    }
  }
  expect(reef.gateway.modelCalls.length).toBe(said.reduce((sum, n) => sum + n, 0));
  const pauses = chats.flatMap(({ devices }) => devices.flatMap((device) => device.pausesMs));
  expect(Math.min(...pauses)).toBeGreaterThanOrEqual(250);
  expect(Math.max(...pauses) - Math.min(...pauses)).toBeGreaterThan(100);
});
