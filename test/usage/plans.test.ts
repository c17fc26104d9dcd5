import { afterAll, beforeAll, expect, test } from "bun:test";
import { getUsage } from "../../src/db/usage.ts";
import { newId } from "../../src/lib/ids.ts";
import { findCheapRefusal, reserveUsage } from "../../src/services/usage.ts";
import { call, makeAssistant, makeUser, type Json, type TestUser } from "../factories.ts";
import { Proxy } from "../faults/proxy.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";

/** Plans that change, by whatever hand: every process acts by the new one at once. */

let reef: TestReef;
let second: Awaited<ReturnType<typeof startProcess>>;
/** Between the first process and Redis. */
let proxy: Proxy;
beforeAll(async () => {
  const redisUrl = process.env["TEST_REDIS_URL"]!;
  proxy = await Proxy.open(() => Number(new URL(redisUrl).port));
  const url = Object.assign(new URL(redisUrl), { port: String(proxy.port) }).toString();
  reef = await startTestReef({ REDIS_URL: url });
  second = await startProcess({ ...reef.env, REDIS_URL: redisUrl });
});
afterAll(async () => {
  await second.stop();
  await reef.stop();
  proxy.close();
});

const ONE = { textMessages: 1 };
const post = (at: { url: string }, user: TestUser, assistant: Json) =>
  call(at.url, "POST", `/api/assistants/${assistant.id}/messages`, { content: "hi", client_id: newId() }, user.token);
/** Somebody with a full day that Redis knows of. */
async function makeFull(): Promise<{ user: TestUser; assistant: Json }> {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  await reef.deps.sql.begin(async (sql) => {
    const usage = await getUsage(sql, user.id);
    const amounts = { textMessages: usage.limits.textMessages };
    await reserveUsage(reef.deps, sql, { userId: user.id, key: newId(), usage, amounts, expiresInMs: null });
  });
  for (const at of [reef, second]) expect((await post(at, user, assistant)).status).toBe(429);
  for (const { deps } of [reef, second]) expect(await findCheapRefusal(deps, user.id, ONE)).not.toBe(null);
  return { user, assistant };
}
const isForgotten = (userId: string) =>
  until("both processes have forgotten it", async () => {
    const known = [reef, second].map(({ deps }) => findCheapRefusal(deps, userId, ONE));
    return (await Promise.all(known)).every((refusal) => refusal === null);
  });

test("a plan given, changed and taken by plain SQL is in force in both processes", async () => {
  const { user, assistant } = await makeFull();
  await reef.sql`insert into subscriptions (user_id, plan) values (${user.id}, 'pro')`;
  await isForgotten(user.id);
  for (const at of [reef, second]) {
    const answer = await post(at, user, assistant);
    expect([answer.status, answer.headers.get("x-ratelimit-plan")]).toEqual([202, "pro"]);
  }
  await reef.sql`update subscriptions set plan = 'premium' where user_id = ${user.id}`;
  expect((await post(second, user, assistant)).headers.get("x-ratelimit-text-remaining")).toBe("1947");
  await reef.sql`delete from subscriptions where user_id = ${user.id}`;
  for (const at of [reef, second])
    expect((await post(at, user, assistant)).body).toMatchObject({ limit: 50, used: 53, upgrade_to: "pro" });
});

test("each process forgets by itself: one that Redis is out of reach for needs no other, and is needed by none", async () => {
  const { user, assistant } = await makeFull();
  proxy.refuse();
  proxy.cut();
  await reef.sql`insert into subscriptions (user_id, plan) values (${user.id}, 'pro')`;
  await isForgotten(user.id);
  for (const at of [reef, second]) expect((await post(at, user, assistant)).status).toBe(202);
  proxy.pass();
});

test("who is leaving has no plan that anybody would have to hear of", async () => {
  const user = await makeUser(reef);
  const other = await makeUser(reef);
  const heard: string[] = [];
  const listening = await reef.sql.listen("reef", (payload) => {
    const { kind, id } = JSON.parse(payload);
    if (kind === "plan") heard.push(id);
  });
  await reef.sql`insert into subscriptions (user_id, plan) values (${user.id}, 'pro')`;
  await reef.sql`update users set status = 'deleting' where id = ${user.id}`;
  await reef.sql`delete from subscriptions where user_id = ${user.id}`;
  await reef.sql`insert into subscriptions (user_id, plan) values (${other.id}, 'pro')`;
  await until("the last was heard of", () => heard.includes(other.id));
  expect(heard).toEqual([user.id, other.id]);
  await listening.unlisten();
});

// The last one: for a while after it nobody is refused cheaply.
test("what a plan gives, changed by plain SQL: everybody's is forgotten", async () => {
  const people = [await makeFull(), await makeFull()];
  await reef.sql`update plan_limits set text_messages = 51 where plan = 'free'`;
  try {
    for (const { user, assistant } of people) {
      await isForgotten(user.id);
      expect((await post(second, user, assistant)).status).toBe(202);
      expect((await post(reef, user, assistant)).body).toMatchObject({ limit: 51, used: 51 });
    }
  } finally {
    await reef.sql`update plan_limits set text_messages = 50 where plan = 'free'`;
  }
});
