import { expect } from "bun:test";
import { makeAssistant, makeUser, type Json, type TestUser } from "../factories.ts";
import { GoodClient } from "../faults/goodClient.ts";
import { until } from "../harness.ts";
import { openTown, type Deployed, type Town } from "./rehearsal.ts";

const READERS = 4;
const WRITERS = 2;
const TALKERS = 3;
const WRITE_EVERY_MS = 60;
const READ_EVERY_MS = 5;
const TALK_EVERY_MS = 20;

interface Person {
  user: TestUser;
  assistant: Json;
}

/** What a load did, after it has come to rest. */
interface Done {
  reads: number;
  writes: number;
  said: number;
  /** Requests that were not answered as they should be; nothing was tried twice. */
  failed: string[];
}

/** People at work behind nginx: who read, who write messages over HTTP, and who talk over a socket. */
interface Load {
  /** Lets everything be answered, and looks whether each acknowledged message is there and answered, once. */
  stop(): Promise<Done>;
}

/** A server whose processes run the release `one`, and people who may say as much as they like. */
export async function openBusyTown(): Promise<{ town: Town; people: Person[] }> {
  const town = await openTown();
  const first = await town.deploy(town.source("one"));
  expect(first.last).toBe("deploy: done: every process runs one");
  town.reef.gateway.setAnswer(async function* (turn) {
    for (const text of ["You said: ", turn.text]) {
      yield { text };
      yield { delayMs: 10 };
    }
  });
  await town.sql`update plan_limits set text_messages = 1000000`;
  return { town, people: await makePeople(town) };
}

/** Does something while people are at work, and shows that none of them noticed. */
export async function underLoad(
  { town, people }: { town: Town; people: Person[] },
  work: () => Promise<Deployed>,
): Promise<Deployed> {
  const logged = town.edge.logs().access.length;
  const load = await startLoad(town, people);
  const deployed = await work();
  const done = await load.stop();
  expect(done.failed).toEqual([]);
  // Nothing was even sent to a process that was stopped: one that had to be tried twice shows both.
  expect(town.edge.logs().access.slice(logged)).not.toMatch(/"process":"[^"]*, /);
  expect(Math.min(done.reads, done.writes, done.said)).toBeGreaterThan(10);
  return deployed;
}

async function makePeople(town: Town): Promise<Person[]> {
  const reef = { url: town.urls[0]! };
  return Promise.all(
    Array.from({ length: 1 + WRITERS + TALKERS }, async () => {
      const user = await makeUser(reef);
      return { user, assistant: await makeAssistant(user) };
    }),
  );
}

async function startLoad(town: Town, people: Person[]): Promise<Load> {
  let stopped = false;
  const done: Done = { reads: 0, writes: 0, said: 0, failed: [] };
  const ask = async (person: Person, method: string, path: string, want: number, body?: object): Promise<void> => {
    const headers = { authorization: `Bearer ${person.user.token}`, "content-type": "application/json" };
    const sent = body === undefined ? {} : { body: JSON.stringify(body) };
    try {
      const answer = await fetch(town.edge.url + path, { method, headers, ...sent, tls: { ca: town.edge.ca } });
      const text = await answer.text();
      if (answer.status !== want) done.failed.push(`${method} ${path}: ${answer.status} ${text}`);
    } catch (error) {
      done.failed.push(`${method} ${path}: ${String(error)}`);
    }
  };
  const [reader, ...others] = people as [Person, ...Person[]];
  const writers = others.slice(0, WRITERS);
  const hands = [
    ...Array.from({ length: READERS }, async () => {
      for (; !stopped; done.reads++) {
        await ask(reader, "GET", "/api/user/profile", 200);
        await Bun.sleep(READ_EVERY_MS);
      }
    }),
    ...writers.map(async (writer) => {
      for (; !stopped; done.writes++) {
        const body = { content: `written ${crypto.randomUUID()}`, client_id: crypto.randomUUID() };
        await ask(writer, "POST", `/api/assistants/${writer.assistant.id}/messages`, 202, body);
        await Bun.sleep(WRITE_EVERY_MS);
      }
    }),
  ];
  const talks = others.slice(WRITERS).map((person) => talk(town, person));
  await until("all are connected", () => talks.every(({ device }) => device.connected));
  return {
    async stop() {
      stopped = true;
      await Promise.all(hands);
      for (const { hush } of talks) done.said += await hush();
      await checkAnswered(town, people, done);
      return done;
    },
  };
}

/** Says something more whenever the last was answered. */
function talk(town: Town, { user, assistant }: Person) {
  const servers = [`${town.edge.url.replace("https", "wss")}/ws/chat`];
  const device = new GoodClient({ servers, token: user.token, agentId: assistant.agent_id, ca: town.edge.ca });
  let said = 0;
  const answered = () => device.outbox.length === 0 && device.messages.at(-1)?.role !== "user";
  const talking = setInterval(() => {
    if (device.connected && answered()) device.send(`said ${++said} ${crypto.randomUUID()}`);
  }, TALK_EVERY_MS);
  const hush = async () => {
    clearInterval(talking);
    await until("all is answered", answered, 20_000);
    device.close();
    if (device.faults.length > 0 || device.refused.length > 0)
      throw new Error(`the chat went wrong: ${JSON.stringify([device.faults, device.refused])}`);
    return said;
  };
  return { device, hush };
}

async function checkAnswered(town: Town, people: Person[], done: Done): Promise<void> {
  const users = people.map(({ user }) => user.id);
  await until(
    "every turn has ended",
    async () =>
      (await town.sql`select 1 from turns where user_id = any(${users}) and finished_at is null`).length === 0,
    30_000,
  );
  const rows = await town.sql`select content from messages where user_id = any(${users}) and role = 'user'`;
  const answers = await town.sql`
    select t.id, count(m.id)::int as n from turns t left join messages m on m.turn_id = t.id and m.role = 'assistant'
    where t.user_id = any(${users}) group by t.id having count(m.id) <> 1`;
  if (answers.length > 0) done.failed.push(`${answers.length} messages were not answered exactly once`);
  const texts = new Set(rows.map((row) => row["content"]));
  if (texts.size !== rows.length) done.failed.push("a message was stored twice");
}
