import { afterAll, beforeAll, expect, test } from "bun:test";
import { join, resolve } from "node:path";
import { getUsage, type Amounts, type Cost } from "../../src/db/usage.ts";
import { newId } from "../../src/lib/ids.ts";
import { createOperator } from "../../src/services/operators.ts";
import { isRefused, reserveUsage, settleUsage } from "../../src/services/usage.ts";
import { call, isAnswer, makeAssistant, makeUser, openChat, type Json, type TestUser } from "../factories.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";

let reef: TestReef;
let token: string;
beforeAll(async () => {
  reef = await startTestReef();
  token = (await createOperator(reef.deps, { osUser: "tester" }, "bookkeeper"))!;
});
afterAll(() => reef.stop());

const costs = async (query = "") => {
  const answer = await call(reef.url, "GET", `/api/admin/costs${query}`, undefined, token);
  expect([query, answer.status]).toEqual([query, 200]);
  return answer.body;
};
const cost = (costMicroUsd: number | null, model = "tts-1"): Cost => {
  return { model, inputTokens: null, outputTokens: null, costMicroUsd };
};

/** Spends on a day long ago, where no other test does. */
async function spend(user: TestUser, date: string, amounts: Partial<Amounts>, microUsd: number | null): Promise<void> {
  const key = newId();
  await reef.deps.sql.begin(async (sql) => {
    const usage = { ...(await getUsage(sql, user.id)), date };
    const input = { userId: user.id, key, usage, amounts, expiresInMs: null };
    expect(isRefused(await reserveUsage(reef.deps, sql, input))).toBe(false);
    await settleUsage(reef.deps, sql, { userId: user.id, key, status: "committed", cost: cost(microUsd) });
  });
}
const givePlan = (user: TestUser, plan: string) =>
  reef.sql`insert into subscriptions (user_id, plan) values (${user.id}, ${plan})`;

test("by plan and by user: what was charged, what it cost, most expensive first, page by page; the sum is of all pages", async () => {
  const [free, pro, premium] = [await makeUser(reef), await makeUser(reef), await makeUser(reef)];
  await givePlan(pro, "pro");
  await givePlan(premium, "premium");
  await spend(free, "2020-03-01", { textMessages: 2 }, null);
  await spend(free, "2020-03-02", { ttsCharacters: 100, voiceOutputSeconds: 7 }, 1_500);
  await spend(pro, "2020-03-02", { voiceInputSeconds: 61 }, 6_100);
  await spend(pro, "2020-03-31", { textMessages: 1 }, 12);
  await spend(premium, "2020-03-15", { ttsCharacters: 1_000 }, 30_000);
  await spend(premium, "2020-04-01", { ttsCharacters: 1_000 }, 30_000);
  const month = "?from=2020-03-01&to=2020-03-31";
  const nothing = {
    text_messages: 0,
    input_tokens: 0,
    output_tokens: 0,
    voice_input_seconds: 0,
    voice_output_seconds: 0,
    tts_characters: 0,
    unpriced: 0,
  };
  const usd = (microUsd: number, text: string) => ({ estimated_cost_micro_usd: microUsd, estimated_cost_usd: text });
  const ofPremium = { ...nothing, ...usd(30_000, "0.030000"), tts_characters: 1_000 };
  const ofPro = { ...nothing, ...usd(6_112, "0.006112"), voice_input_seconds: 61, text_messages: 1 };
  const ofFree = {
    ...nothing,
    ...usd(1_500, "0.001500"),
    text_messages: 2,
    voice_output_seconds: 7,
    tts_characters: 100,
    unpriced: 1,
  };
  const total = {
    ...nothing,
    ...usd(37_612, "0.037612"),
    text_messages: 3,
    voice_input_seconds: 61,
    voice_output_seconds: 7,
    tts_characters: 1_100,
    unpriced: 1,
  };
  const items = [
    { plan: "premium", ...ofPremium },
    { plan: "pro", ...ofPro },
    { plan: "free", ...ofFree },
  ];
  const head = { from: "2020-03-01", to: "2020-03-31" };
  expect(await costs(month)).toEqual({ ...head, by: "plan", total, items, next_cursor: null });
  const byUser = await costs(`${month}&by=user&limit=2`);
  expect(byUser).toEqual({
    ...head,
    by: "user",
    total,
    items: [
      { user_id: premium.id, ...ofPremium },
      { user_id: pro.id, ...ofPro },
    ],
    next_cursor: expect.any(String),
  });
  expect(await costs(`${month}&by=user&limit=2&cursor=${byUser.next_cursor}`)).toEqual({
    ...head,
    by: "user",
    total,
    items: [{ user_id: free.id, ...ofFree }],
    next_cursor: null,
  });
  expect((await costs("?from=2020-04-01&to=2020-04-01")).items).toEqual([{ plan: "premium", ...ofPremium }]);
});

test("many that cost the same are all listed, each once", async () => {
  const people = await Promise.all(Array.from({ length: 7 }, () => makeUser(reef)));
  for (const user of people) await spend(user, "2020-06-01", { textMessages: 1 }, 5);
  const seen: string[] = [];
  let cursor: string | null = null;
  do {
    const query: string = `?from=2020-06-01&to=2020-06-01&by=user&limit=3${cursor ? `&cursor=${cursor}` : ""}`;
    const page: Json = await costs(query);
    seen.push(...page.items.map((item: Json) => item.user_id));
    cursor = page.next_cursor;
  } while (cursor !== null);
  expect(seen.toSorted()).toEqual(people.map(({ id }) => id).toSorted());
});

test("who has left is no group of their own any more, and the sums of the past stay what they were", async () => {
  const [stays, leaves, leavesToo] = [await makeUser(reef), await makeUser(reef), await makeUser(reef)];
  await givePlan(leavesToo, "pro");
  for (const user of [stays, leaves, leavesToo]) {
    await spend(user, "2020-09-01", { textMessages: 1, voiceInputSeconds: 4 }, 410);
    await spend(user, "2020-09-02", { ttsCharacters: 50 }, null);
  }
  const period = "?from=2020-09-01&to=2020-09-30";
  const before = await costs(period);
  for (const user of [leaves, leavesToo])
    expect((await user.call("DELETE", "/api/user/account", { password: user.password })).status).toBe(202);
  await until("both are gone", async () => {
    const rows =
      await reef.sql`select 1 from account_deletions where user_id in ${reef.sql([leaves.id, leavesToo.id])} and step = 'done'`;
    return rows.length === 2;
  });
  expect(await costs(period)).toEqual(before);
  const { items, total } = await costs(`${period}&by=user`);
  expect(items.map((item: Json) => [item.user_id, item.estimated_cost_micro_usd, item.unpriced])).toEqual([
    [null, 820, 2],
    [stays.id, 410, 1],
  ]);
  expect(total).toEqual(before.total);
  expect(JSON.stringify(items)).not.toContain(leaves.id);
});

test("by default the last 30 days; a user's own are in what an operator sees of them", async () => {
  const user = await makeUser(reef);
  const { date } = await getUsage(reef.sql, user.id);
  const days = (n: number) => new Date(Date.parse(date) - n * 86_400_000).toISOString().slice(0, 10);
  await spend(user, days(0), { voiceInputSeconds: 10 }, 1_000);
  await spend(user, days(20), { voiceInputSeconds: 10 }, 100);
  await spend(user, days(40), { voiceInputSeconds: 10 }, 10);
  const found = (await costs("?by=user")).items.find((item: Json) => item.user_id === user.id);
  expect([found.voice_input_seconds, found.estimated_cost_usd]).toEqual([20, "0.001100"]);
  const overview = await call(reef.url, "GET", `/api/admin/users/${user.id}`, undefined, token);
  expect(overview.body.costs_30_days).toEqual({ ...found, user_id: undefined });
  for (const query of [
    "from=2020-13-01",
    "from=yesterday",
    "from=2020-02-02&to=2020-02-01",
    "from=2019-01-01&to=2020-02-01",
    "by=month",
    "cursor=x",
    "cursor=WzEuNSwibyJd",
    "limit=0",
    "day=1",
  ])
    expect([query, (await call(reef.url, "GET", `/api/admin/costs?${query}`, undefined, token)).body.code]).toEqual([
      query,
      "validation_failed",
    ]);
});

test("an answer's tokens and cost are in the ledger, with its model and plan; of a stopped one what is known of it", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  reef.gateway.setAnswer(async function* (turn) {
    if (turn.text === "look") yield { text: "Let me look." };
    if (turn.text === "look") yield { usage: { input: 700, output: 30 } };
    if (turn.text === "look") yield { tool: "read" };
    yield { text: "It is" };
    if (turn.text !== "short") yield { hang: true };
  });
  const chat = await openChat(reef, user.token, assistant.agent_id);
  chat.say("short");
  await chat.next("the answer", isAnswer);
  const rows = () => reef.sql`select plan, model, status, input_tokens > 0 as tokens, cost_micro_usd > 0 as cost
    from usage_logs where user_id = ${user.id} order by created_at`;
  await until("its cost is known", async () => (await rows())[0]!["cost"]);
  expect((await rows())[0]).toEqual({
    plan: "free",
    model: assistant.model,
    status: "committed",
    tokens: true,
    cost: true,
  });
  // Two model calls, and the second one is stopped: the first one's tokens are known.
  const say = async (text: string) => {
    const seen = chat.frames.length;
    chat.say(text);
    const later = () => chat.frames.slice(seen);
    await until("its text", () =>
      later()
        .filter((frame) => frame.type === "chunk")
        .map(({ content }) => content)
        .join("")
        .endsWith("It is"),
    );
    chat.send({ type: "stop" });
    await until("it is stopped", () => later().some((frame) => isAnswer(frame) && frame.finish === "stopped"));
  };
  await say("look");
  await until("its tokens are known", async () => (await rows())[1]?.["tokens"]);
  expect((await rows())[1]).toMatchObject({ model: assistant.model, status: "committed", cost: true });
  const [turn] = await reef.sql`select input_tokens from turns where user_id = ${user.id} and status = 'stopped'`;
  expect(turn).toEqual({ inputTokens: 700 });
  // One that was cut off in its only call: nobody has counted.
  await say("long");
  expect((await rows())[2]).toMatchObject({ status: "committed", tokens: null, cost: null });
  chat.close();
});

test("the table on the command line: the same numbers, aligned, the sum last; misuse is 2", async () => {
  const user = await makeUser(reef);
  await spend(user, "2021-01-02", { voiceInputSeconds: 60 }, 6_000);
  const run = async (...args: string[]) => {
    const child = Bun.spawn(
      [process.execPath, "--no-env-file", join(resolve(import.meta.dir, "../.."), "src/jobs/admin.ts"), ...args],
      { env: { PATH: process.env["PATH"] ?? "", ...reef.env }, stdout: "pipe", stderr: "pipe" },
    );
    const [out, said] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
    return { code: await child.exited, out, said };
  };
  const shown = await run("costs", "--from", "2021-01-01", "--to", "2021-01-31", "--by", "user");
  expect(shown).toMatchObject({ code: 0, said: "" });
  const lines = shown.out.trim().split("\n");
  expect(lines.map((line) => line.trim().split(/ {2,}/))).toEqual([
    ["2021-01-01 to 2021-01-31"],
    ["user", "messages", "tokens in", "out", "heard s", "spoken s", "characters", "USD", "unpriced"],
    [user.id, "0", "0", "0", "60", "0", "0", "0.006000", "0"],
    ["all", "0", "0", "0", "60", "0", "0", "0.006000", "0"],
  ]);
  expect(new Set(lines.slice(1).map(({ length }) => length)).size).toBe(1);
  expect((await run("costs")).out).toContain("plan ");
  for (const args of [
    ["costs", "x"],
    ["costs", "--name", "ann"],
    ["costs", "--by", "month"],
    ["costs", "--from", "2021-02-30"],
    ["costs", "--to", "tomorrow"],
    ["token", "costs"],
    ["token", "list", "--from", "2021-01-01"],
  ])
    expect([args, (await run(...args)).code]).toEqual([args, 2]);
  const backwards = await run("costs", "--from", "2021-02-01", "--to", "2021-01-01");
  expect([backwards.code, backwards.said]).toEqual([1, expect.stringContaining("must not be after")]);
  expect((await run("costs", "--help")).out).toStartWith("npm run admin -- costs [--from DATE]");
});
