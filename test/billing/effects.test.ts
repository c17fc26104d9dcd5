import { afterAll, beforeAll, expect, test } from "bun:test";
import { findRefusedDay, keepRefusal } from "../../src/services/usageCache.ts";
import { call, isAnswer, makeAssistant, openChat, type Json, type TestUser } from "../factories.ts";
import { startProcess, until } from "../harness.ts";
import { auditOf, buy, mailsOf, makeBuyer, makeSubscriber, openShop, planOf, type Shop } from "./shop.ts";

let shop: Shop;
let other: Awaited<ReturnType<typeof startProcess>>;
beforeAll(async () => {
  shop = await openShop();
  other = await startProcess(shop.reef.env);
});
afterAll(async () => {
  await other.stop();
  await shop.stop();
});

const assistantsOf = async (user: TestUser): Promise<Json[]> => (await user.call("GET", "/api/assistants")).body;
/** The names of those that are active, in their order of making. */
const active = async (user: TestUser) =>
  (await assistantsOf(user)).filter(({ status }) => status === "active").map(({ display_name: name }) => name);
const end = async ({ subscription }: { subscription: string }) => {
  shop.stripe.cancelNow(subscription);
  await shop.settled();
};

/** With assistants of these names, used in this order: the last one most recently. */
async function makeOwner(price: Parameters<typeof buy>[2], names: string[]) {
  const owner = await makeSubscriber(shop, price);
  const ids: Record<string, string> = {};
  for (const name of names) ids[name] = (await makeAssistant(owner.user, { display_name: name })).id;
  return { ...owner, ids };
}

const use = (id: string) => shop.sql`update assistants set last_used_at = now() + interval '1 second' where id = ${id}`;

test("a smaller plan pauses the least recently used, a larger one brings them back; nothing is lost", async () => {
  const owner = await makeOwner("pro monthly", ["a", "b", "c", "d", "e"]);
  const { user, customer, ids } = owner;
  await use(ids["b"]!);
  await end(owner);
  expect(await active(user)).toEqual(["b"]);
  const paused = (await assistantsOf(user)).filter(({ status }) => status === "paused");
  expect(paused.map((one) => [one.display_name, one.paused_by_plan])).toEqual(
    ["a", "c", "d", "e"].map((n) => [n, true]),
  );
  expect(await auditOf(shop.sql, user.id, "subscription.changed")).toMatchObject([
    { to: "pro", paused: 0 },
    { to: "free", paused: 4 },
  ]);
  // By hand: no place for a second one, but they may change places.
  const resume = (name: string) => user.call("POST", `/api/assistants/${ids[name]}/resume`);
  const refused = await resume("c");
  expect([refused.status, refused.body.code, refused.body.limit, refused.body.upgrade_to]).toEqual([
    403,
    "assistant_limit_reached",
    1,
    "pro",
  ]);
  expect((await resume("b")).status).toBe(200);
  expect((await user.call("POST", `/api/assistants/${ids["b"]}/pause`)).status).toBe(200);
  expect((await resume("c")).status).toBe(200);
  // Paused by hand stays paused, whatever the plan.
  expect((await user.call("POST", `/api/assistants/${ids["d"]}/pause`)).body.paused_by_plan).toBeUndefined();
  buy(shop, customer, "pro monthly");
  await shop.settled();
  expect(await active(user)).toEqual(["a", "c", "e"]);
  expect((await resume("d")).status).toBe(200);
  expect((await resume("b")).status).toBe(200);
});

test("as many come back as fit, the most recently used first", async () => {
  const names = Array.from({ length: 8 }, (_, n) => `n${n}`);
  const owner = await makeOwner("premium monthly", names);
  await end(owner);
  expect(await active(owner.user)).toEqual(["n7"]);
  buy(shop, owner.customer, "pro monthly");
  await shop.settled();
  expect(await active(owner.user)).toEqual(["n3", "n4", "n5", "n6", "n7"]);
  const created = await owner.user.call("POST", "/api/assistants", {});
  expect([created.status, created.body.code]).toEqual([403, "assistant_limit_reached"]);
});

test("one that is answering stops, and is not charged for what it did not say", async () => {
  const owner = await makeOwner("pro monthly", ["first", "second"]);
  const { user, ids } = owner;
  shop.reef.gateway.setAnswer(async function* () {
    yield { hang: true };
  });
  const agentId = (await assistantsOf(user))[0].agent_id;
  const chat = await openChat(shop.reef, user.token, agentId);
  chat.say("long story");
  await until("it runs", async () => {
    const rows = await shop.sql`select 1 from turns where assistant_id = ${ids["first"]!} and status = 'dispatched'`;
    return rows.length === 1;
  });
  await use(ids["second"]!);
  await end(owner);
  expect((await chat.next("its end", isAnswer)).finish).toBe("stopped");
  chat.say("more");
  expect((await chat.next("a refusal", (frame) => frame.type === "error")).code).toBe("assistant_paused");
  expect((await user.call("GET", "/api/user/usage")).body.text_messages.used).toBe(0);
  chat.close();
  shop.reef.gateway.setAnswer(async function* () {
    yield { text: "Hello." };
  });
});

test("the plan's model is that of each assistant", async () => {
  await shop.sql`update plan_limits set chat_model = 'openai-custom/better' where plan = 'premium'`;
  try {
    const owner = await makeOwner("pro monthly", ["a"]);
    const modelOf = async () => (await assistantsOf(owner.user)).map(({ model }) => model);
    expect(await modelOf()).toEqual(["openai-custom/gpt-5-nano"]);
    shop.stripe.portal.changePlan(owner.subscription, shop.prices["premium monthly"]);
    await shop.settled();
    expect(await modelOf()).toEqual(["openai-custom/better"]);
    await makeAssistant(owner.user);
    expect(await modelOf()).toEqual(["openai-custom/better", "openai-custom/better"]);
    await end(owner);
    expect(await modelOf()).toEqual(["openai-custom/gpt-5-nano", "openai-custom/gpt-5-nano"]);
  } finally {
    await shop.sql`update plan_limits set chat_model = 'openai-custom/gpt-5-nano'`;
  }
});

/** What was used today, as it would be after so many messages. */
async function useUp(user: TestUser, messages: number): Promise<void> {
  await shop.sql`insert into daily_usage (user_id, date, text_messages) select u.id, day.date, ${messages}
    from users u cross join lateral day_of(u, now()) day where u.id = ${user.id}`;
  await shop.sql`insert into usage_logs (id, user_id, date, kind, amount, limit_then, plan, status, idempotency_key, settled_at)
    select gen_random_uuid(), u.id, day.date, 'text_messages', ${messages}, ${messages}, 'free', 'committed', u.id::text, now()
    from users u cross join lateral day_of(u, now()) day where u.id = ${user.id}`;
}

test("who is at the limit upgrades, and the next message goes through, on every process; and back", async () => {
  const { user, customer } = await makeBuyer(shop);
  const assistant = await makeAssistant(user);
  await useUp(user, 50);
  // For a while after any plan was changed itself (the test before) no refusal is remembered.
  await shop.reef.deps.redis.del("plan:everyone");
  const say = (reef: { url: string }) =>
    call(
      reef.url,
      "POST",
      `/api/assistants/${assistant.id}/messages`,
      { content: "hi", client_id: crypto.randomUUID() },
      user.token,
    );
  const processes = [shop.reef, other];
  for (const process of processes) expect((await say(process)).status).toBe(429);
  // The refusals are remembered: the next one costs nothing.
  expect(await findRefusedDay(shop.reef.deps, user.id)).toMatchObject({ plan: "free" });
  const subscription = buy(shop, customer, "pro monthly");
  await shop.settled();
  for (const process of processes) {
    const answer = await say(process);
    expect([answer.status, answer.headers.get("x-ratelimit-plan")]).toEqual([202, "pro"]);
  }
  await end({ subscription });
  for (const process of processes) {
    const answer = await say(process);
    expect([answer.status, answer.body.limit]).toEqual([429, 50]);
  }
});

test("an old plan that somebody has just read can't come back over the new one", async () => {
  const { user, customer } = await makeBuyer(shop);
  await makeAssistant(user);
  await useUp(user, 50);
  const refused = async () =>
    (
      await user.call("POST", `/api/assistants/${(await assistantsOf(user))[0].id}/messages`, {
        content: "hi",
        client_id: crypto.randomUUID(),
      })
    ).status;
  expect(await refused()).toBe(429);
  const { redis } = shop.reef.deps;
  const old = (await redis.get(`plan:${user.id}`))!;
  expect(JSON.parse(old).plan).toBe("free");
  buy(shop, customer, "pro monthly");
  await shop.settled();
  const plan = JSON.parse(old);
  const usage = { ...plan, resetAt: new Date(plan.resetAt), active: true, used: plan.limits, version: 1_000 };
  await keepRefusal(shop.reef.deps, user.id, usage);
  expect(await refused()).toBe(202);
});

test("open sockets are told, on every process, also when the notice is lost", async () => {
  const { user, customer } = await makeBuyer(shop);
  const assistant = await makeAssistant(user);
  const here = await openChat(shop.reef, user.token, assistant.agent_id);
  const there = await openChat(other, user.token, assistant.agent_id);
  const told = (plan: string) => (frame: Json) => frame.type === "plan" && frame.plan === plan;
  for (const chat of [here, there]) expect(chat.frames[0]).toMatchObject({ type: "connected", plan: "free" });
  buy(shop, customer, "pro monthly");
  for (const chat of [here, there]) {
    expect(await chat.next("the plan", told("pro"))).toEqual({
      type: "plan",
      plan: "pro",
      upgrade_to: "premium",
      limits: {
        assistants: 5,
        text_messages: 500,
        voice_input_seconds: 1800,
        voice_output_seconds: 1800,
        tts_characters: 50_000,
      },
      voices: ["nova", "alloy", "echo", "fable", "onyx", "shimmer"],
    });
    const usage = await chat.next("the day", (frame) => frame.type === "usage" && frame.text_messages.limit === 500);
    expect(usage.text_messages.used).toBe(0);
  }
  await shop.settled();
  // Nobody is told by this: the trigger is away.
  await shop.sql`alter table subscriptions disable trigger subscriptions_tell`;
  await shop.sql`update subscriptions set plan = 'premium' where user_id = ${user.id}`;
  await shop.sql`update users set applied_plan = 'premium' where id = ${user.id}`;
  await shop.sql`alter table subscriptions enable trigger subscriptions_tell`;
  await shop.sql`select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and query ilike 'listen%'`;
  for (const chat of [here, there]) await chat.next("the plan", told("premium"));
  for (const chat of [here, there]) chat.close();
});

test("a plan that is itself changed counts for all who have it: limits, assistants, model, open sockets", async () => {
  const owner = await makeOwner("pro monthly", ["a", "b", "c", "d"]);
  const chat = await openChat(other, owner.user.token, (await assistantsOf(owner.user))[3].agent_id);
  const set = (assistants: number, messages: number, model: string) => shop.sql`
    update plan_limits set assistants = ${assistants}, text_messages = ${messages}, chat_model = ${model} where plan = 'pro'`;
  try {
    await set(2, 400, "openai-custom/better");
    const told = await chat.next("the plan", (frame) => frame.type === "plan" && frame.limits.assistants === 2);
    expect(told.limits.text_messages).toBe(400);
    await until("they are fitted", async () => (await active(owner.user)).length === 2);
    expect(await active(owner.user)).toEqual(["c", "d"]);
    expect(new Set((await assistantsOf(owner.user)).map(({ model }) => model))).toEqual(
      new Set(["openai-custom/better"]),
    );
    // Their plan is the same one.
    expect((await mailsOf(shop.sql, owner.user.id)).length).toBe(1);
  } finally {
    await set(5, 500, "openai-custom/gpt-5-nano");
    chat.close();
  }
});

test("an entitlement of whatever source, written by anybody, is applied", async () => {
  const { user } = await makeBuyer(shop);
  await shop.sql`insert into subscriptions (user_id, source, plan, status) values (${user.id}, 'apple', 'premium', 'active')`;
  await until("it is applied", async () => (await mailsOf(shop.sql, user.id)).length === 1);
  expect(await planOf(user)).toBe("premium");
  for (let n = 0; n < 3; n++) await makeAssistant(user, { display_name: `n${n}` });
  await shop.sql`delete from subscriptions where user_id = ${user.id}`;
  await until("it is applied", async () => (await active(user)).length === 1);
  expect((await mailsOf(shop.sql, user.id)).length).toBe(2);
});

test("a plan that shrinks while assistants are made: never more than it gives", async () => {
  for (let round = 0; round < 6; round++) {
    const owner = await makeSubscriber(shop, "pro monthly");
    const making = Array.from({ length: 5 }, (_, n) =>
      owner.user.call("POST", "/api/assistants", { display_name: `${n}` }),
    );
    await making[round % 5];
    shop.stripe.cancelNow(owner.subscription);
    await Promise.all(making);
    await shop.settled();
    expect((await active(owner.user)).length).toBeLessThanOrEqual(1);
  }
});

test("resuming many at once never fills more places than there are", async () => {
  const owner = await makeOwner("pro monthly", ["a", "b", "c", "d"]);
  await end(owner);
  await owner.user.call("POST", `/api/assistants/${owner.ids["d"]}/pause`);
  const answers = await Promise.all(
    Object.values(owner.ids).map((id) => owner.user.call("POST", `/api/assistants/${id}/resume`)),
  );
  expect(answers.filter(({ status }) => status === 200).length).toBe(1);
  expect((await active(owner.user)).length).toBe(1);
});

test("who leaves while a plan is applied to a running answer: neither is refused for the other", async () => {
  const { user, customer } = await makeBuyer(shop);
  const assistant = await makeAssistant(user);
  shop.reef.gateway.setAnswer(async function* () {
    yield { hang: true };
  });
  const chat = await openChat(shop.reef, user.token, assistant.agent_id);
  chat.say("long story");
  await until("it runs", async () => {
    const rows = await shop.sql`select 1 from turns where assistant_id = ${assistant.id} and status = 'dispatched'`;
    return rows.length === 1;
  });
  const waiting = (query: string) =>
    until(`${query} waits`, async () => {
      const rows = await shop.sql`select 1 from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock' and query similar to ${query}`;
      return rows.length > 0;
    });
  const leaving = await shop.sql.begin(async (sql) => {
    // The row is written, and the plan waits to be applied.
    await sql`select 1 from assistants where id = ${assistant.id} for no key update`;
    buy(shop, customer, "pro monthly");
    await waiting("select 1 from assistants%");
    const answer = user.call("DELETE", "/api/user/account", { password: user.password });
    await waiting("%(with old as|reef:plan)%");
    return { answer };
  });
  expect((await leaving.answer).status).toBe(202);
  await shop.settled();
  expect(shop.reef.logs.filter((line) => line.includes(customer) && line.includes("trying again"))).toEqual([]);
  chat.close();
});
