import { afterEach, expect, test } from "bun:test";
import { connect } from "node:net";
import { makeAssistant, makeUser, openChat, type Chat, type Json, type TestUser } from "../factories.ts";
import { openRedis } from "../ownRedis.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";

const SENDS = 1000;
const LIMIT = 50;
/** As many as a person may have; each sends so many messages at once, the others go over HTTP. */
const SOCKETS = 10;
const FRAMES = 20;
/** It takes seconds, unless the machine is busy. */
const PATIENCE_MS = 60_000;

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** What became of one message. */
interface Verdict {
  accepted: boolean;
  body: Json;
}

test(
  "1,000 parallel messages at limit 50, to two processes: exactly 50 are accepted, ledger = counter",
  async () => {
    const town = await openTown();
    const verdicts = await sendAll(town);
    expectLimit(verdicts);
    expect(town.sentAgain).toBe(0);
    await expectSettled(town);
  },
  2 * PATIENCE_MS,
);

test(
  "the same while Redis is emptied and restarted all the time",
  async () => {
    const redis = await openRedis();
    closers.push(() => redis.close());
    const town = await openTown({ REDIS_URL: redis.url });
    const trouble = redis.makeTrouble();
    const verdicts = await sendAll(town);
    const { emptied, restarted } = await trouble.end();
    expect([emptied > 1, restarted > 1]).toEqual([true, true]);
    expectLimit(verdicts);
    await expectSettled(town);
  },
  2 * PATIENCE_MS,
);

interface Town {
  reef: TestReef;
  urls: string[];
  user: TestUser;
  assistants: Json[];
  chats: Chat[];
  /** How many answers were "not now". */
  sentAgain: number;
}

/** One person with two assistants and ten sockets, on two processes. */
async function openTown(overrides: Record<string, string> = {}): Promise<Town> {
  const reef = await startTestReef(overrides);
  closers.push(() => reef.stop());
  const second = await startProcess(reef.env);
  closers.push(() => second.stop());
  const user = await makeUser(reef);
  await reef.sql`update plan_limits set assistants = 2 where plan = 'free'`;
  const assistants = [await makeAssistant(user), await makeAssistant(user)];
  const processes = [reef, second];
  // Each assistant's sockets are on both processes.
  const open = (_: unknown, n: number) => openChat(processes[n % 2]!, user.token, assistants[(n >> 1) % 2].agent_id);
  const chats = await Promise.all(Array.from({ length: SOCKETS }, open));
  return { reef, urls: processes.map(({ url }) => url), user, assistants, chats, sentAgain: 0 };
}

async function sendAll(town: Town): Promise<Verdict[]> {
  const overHttp = Array.from({ length: SENDS - SOCKETS * FRAMES }, (_, n) => postUntilAnswered(town, n));
  const said = town.chats.map((chat) => sayUntilAnswered(town, chat));
  return [...(await Promise.all(overHttp)), ...(await Promise.all(said)).flat()];
}

/** Sent again under the same client_id as long as the answer is "not now". */
async function postUntilAnswered(town: Town, n: number): Promise<Verdict> {
  const url = `${town.urls[n % 2]}/api/assistants/${town.assistants[(n >> 1) % 2].id}/messages`;
  const message = { content: "x", client_id: crypto.randomUUID() };
  for (;;) {
    const { status, body } = await post(url, town.user.token, message);
    expect([202, 429, 503]).toContain(status);
    if (status !== 503) return { accepted: status === 202, body };
    town.sentAgain += 1;
  }
}

/** The same over a socket, all at once. */
function sayUntilAnswered(town: Town, chat: Chat): Promise<Verdict[]> {
  const waiting = new Map<string, (verdict: Verdict) => void>();
  chat.socket.addEventListener("message", (event) => {
    const body: Json = JSON.parse(String(event.data));
    if (body.type !== "ack" && body.type !== "error") return;
    if (body.code !== "service_unavailable")
      return waiting.get(body.client_id)?.({ accepted: body.type === "ack", body });
    town.sentAgain += 1;
    chat.say("x", body.client_id);
  });
  const sayOne = () => new Promise<Verdict>((answered) => void waiting.set(chat.say("x"), answered));
  return Promise.all(Array.from({ length: FRAMES }, sayOne));
}

/** One request on a connection of its own: `fetch` lets only 256 go at a time. */
function post(url: string, token: string, message: object): Promise<{ status: number; body: Json }> {
  const { hostname, port, pathname } = new URL(url);
  const text = JSON.stringify(message);
  const answered = Promise.withResolvers<{ status: number; body: Json }>();
  const socket = connect(Number(port), hostname);
  let answer = "";
  socket.on("data", (bytes: Buffer) => (answer += bytes.toString("latin1")));
  socket.on("error", answered.reject);
  socket.on("close", () => {
    const [head = "", body = ""] = answer.split("\r\n\r\n");
    answered.resolve({ status: Number(head.split(" ")[1]), body: JSON.parse(body) });
  });
  socket.write(
    `POST ${pathname} HTTP/1.1\r\nHost: reef\r\nAuthorization: Bearer ${token}\r\nContent-Type: application/json\r\n` +
      `Content-Length: ${text.length}\r\nConnection: close\r\n\r\n${text}`,
  );
  return answered.promise;
}

function expectLimit(verdicts: Verdict[]): void {
  const refused = verdicts.filter((verdict) => !verdict.accepted);
  expect([verdicts.length - refused.length, refused.length]).toEqual([LIMIT, SENDS - LIMIT]);
  for (const { body } of refused)
    expect(body).toMatchObject({ code: "RATE_LIMITED", limit: LIMIT, used: LIMIT, upgrade_to: "pro" });
  const resets = new Set(refused.map(({ body }) => body.reset_at));
  expect([...resets].map((at) => Date.parse(at) > Date.now())).toEqual([true]);
}

/** The day's counter and the ledger say the same, at once and when all is answered; nothing else was stored. */
async function expectSettled({ reef, user }: Town): Promise<void> {
  const count = async () => {
    const [row] = await reef.sql`
      select (select sum(text_messages)::int from daily_usage where user_id = ${user.id}) as counter,
        (select sum(amount)::int from usage_logs
          where user_id = ${user.id} and status in ('reserved', 'committed')) as ledger,
        (select count(*)::int from messages where user_id = ${user.id} and role = 'user') as messages,
        (select count(*)::int from turns where user_id = ${user.id}) as turns,
        (select count(*)::int from turns where user_id = ${user.id} and status = 'done') as done`;
    return row!;
  };
  const whole = { counter: LIMIT, ledger: LIMIT, messages: LIMIT, turns: LIMIT };
  expect(await count()).toMatchObject(whole);
  await until("all are answered", async () => (await count())["done"] === LIMIT, PATIENCE_MS);
  expect(await count()).toMatchObject(whole);
}
