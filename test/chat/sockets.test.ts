import { afterEach, expect, test } from "bun:test";
import { createOpenSockets } from "../../src/services/openSockets.ts";
import { makeAssistant, makeUser, openChat, type Chat, type TestUser } from "../factories.ts";
import { Proxy } from "../faults/proxy.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";

type Api = Awaited<ReturnType<typeof startProcess>>;

let reef: TestReef;
let other: Api;
const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** Two processes, and somebody with an assistant. */
async function startTwo(overrides: Record<string, string> = {}): Promise<{ user: TestUser; agentId: string }> {
  reef = await startTestReef(overrides);
  closers.push(() => reef.stop());
  other = await startProcess(reef.env);
  closers.push(() => other.stop());
  const user = await makeUser(reef);
  return { user, agentId: (await makeAssistant(user)).agent_id };
}

const openMany = (api: { url: string }, { token }: TestUser, agentId: string, n: number): Promise<Chat[]> =>
  Promise.all(Array.from({ length: n }, () => openChat(api, token, agentId)));
const living = (chats: Chat[]) => chats.filter((chat) => chat.closed === null);
const list = (userId: string) => createOpenSockets(reef.deps).list(userId);

test("ten sockets in all processes together; the eleventh is refused at each; a closed one makes room", async () => {
  const { user, agentId } = await startTwo();
  const here = await openMany(reef, user, agentId, 6);
  const there = await openMany(other, user, agentId, 4);
  expect(living([...here, ...there]).length).toBe(10);
  for (const api of [reef, other])
    expect((await openChat(api, user.token, agentId)).closed).toEqual({ code: 4429, reason: "too many sockets" });
  const known = await list(user.id);
  const counts = [reef, other].map(({ deps }) => known.filter((socket) => socket.processId === deps.processId).length);
  expect([known.length, ...counts]).toEqual([10, 6, 4]);
  expect(known.every((socket) => socket.agentId === agentId)).toBe(true);
  // Somebody else's do not count.
  const stranger = await makeUser(other);
  const strangersAgent = (await makeAssistant(stranger)).agent_id;
  expect((await openChat(reef, stranger.token, strangersAgent)).closed).toBeNull();
  here[0]!.close();
  await until("its place is free", async () => (await list(user.id)).length === 9);
  expect((await openChat(other, user.token, agentId)).closed).toBeNull();
});

test("of 24 that are opened at once at two processes ten live", async () => {
  const { user, agentId } = await startTwo();
  const chats = (await Promise.all([reef, other].map((api) => openMany(api, user, agentId, 12)))).flat();
  await until("the others are closed", () => chats.filter((chat) => chat.closed?.code === 4429).length === 14);
  expect(living(chats).length).toBe(10);
  expect((await list(user.id)).length).toBe(10);
});

test("a dead process's sockets run out by themselves; living ones are refreshed, also after Redis was emptied", async () => {
  const { user, agentId } = await startTwo({ CHAT_PING_MS: "500" });
  const mine = await openChat(reef, user.token, agentId);
  const dead = createOpenSockets({ ...reef.deps, processId: "a process that was killed" });
  for (let n = 0; n < 9; n++) await dead.claim(user.id, agentId);
  expect((await openChat(other, user.token, agentId)).closed?.code).toBe(4429);
  await until("the dead ones are gone", async () => (await list(user.id)).length === 1);
  expect((await openChat(other, user.token, agentId)).closed).toBeNull();
  await reef.deps.redis.del(`ws:connections:${user.id}`);
  await until("both are known again", async () => (await list(user.id)).length === 2);
  expect(mine.closed).toBeNull();
});

test("an orderly stop leaves no place taken", async () => {
  const { user, agentId } = await startTwo();
  const chats = await openMany(other, user, agentId, 10);
  await other.stop();
  await until("they are sent away", () => living(chats).length === 0);
  expect(await list(user.id)).toEqual([]);
});

test("Redis away: each process counts its own", async () => {
  const redis = await Proxy.open(() => Number(new URL(process.env["TEST_REDIS_URL"]!).port));
  closers.push(() => redis.close());
  const REDIS_URL = Object.assign(new URL(process.env["TEST_REDIS_URL"]!), { port: String(redis.port) }).toString();
  const { user, agentId } = await startTwo({ REDIS_URL });
  redis.refuse();
  redis.cut();
  for (const api of [reef, other]) {
    const chats = await openMany(api, user, agentId, 10);
    expect(living(chats).length).toBe(10);
    expect((await openChat(api, user.token, agentId)).closed?.code).toBe(4429);
  }
});

test("a Redis that never answers keeps nobody waiting", async () => {
  const { user, agentId } = await startTwo();
  reef.deps.redis.eval = () => new Promise(() => undefined);
  expect((await openChat(reef, user.token, agentId)).closed).toBeNull();
});
