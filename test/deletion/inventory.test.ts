import { afterAll, beforeAll, expect, test } from "bun:test";
import { appendFileSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { newId } from "../../src/lib/ids.ts";
import { checkInvariants } from "../../src/services/invariants.ts";
import { isAnswer, makeAssistant, makeUser, openChat, type TestUser } from "../factories.ts";
import { startFakeStripe, type FakeStripe } from "../fakes/stripe.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";
import { listTablesOf, searchDatabase, searchFiles, searchRedis, takeSnapshot } from "./search.ts";

const PHRASE = "quokka-marmalade-7731";
let reef: TestReef;
let stripe: FakeStripe;

beforeAll(async () => {
  stripe = await startFakeStripe();
  reef = await startTestReef({ STRIPE_SECRET_KEY: stripe.secretKey, STRIPE_API_BASE: stripe.apiBase });
});
afterAll(async () => {
  await reef.stop();
  await stripe.close();
});

/** Columns of a user's rows that hold what the program chose: ids, states, names of things. */
const OURS = new Set(
  `users.password_hash users.status users.timezone refresh_tokens.token_hash refresh_tokens.previous_token_hash
  refresh_tokens.revoked_reason subscriptions.plan subscriptions.status subscriptions.source subscriptions.billing_cycle users.applied_plan stripe_prices.price_id stripe_prices.plan
  stripe_prices.cycle stripe_prices.product_id stripe_customers.customer_id stripe_events.id stripe_events.type stripe_events.outcome
  stripe_events.last_error identities.provider
  one_time_tokens.kind outbox.template assistants.gateway_id assistants.agent_id assistants.voice assistants.model
  assistants.status assistants.state assistants.purge_step turns.gateway_id turns.status messages.role messages.finish
  usage_logs.kind usage_logs.status usage_logs.plan usage_logs.model account_deletions.step account_deletions.last_error
  account_deletions.recipient account_deletions.provider_tokens`.split(/\s+/),
);

/** Every column that can hold a person's text, as `table.column`. A new one has to be planted here, or to be ours. */
async function listTextColumns(): Promise<string[]> {
  const rows = await reef.sql<{ name: string }[]>`
    select c.table_name || '.' || c.column_name as name from information_schema.columns c
    where c.table_schema = 'public' and c.udt_name in ('text', 'citext', 'bytea', 'json', 'jsonb', 'varchar', '_text')
      and (c.table_name = 'users' or exists (select 1 from information_schema.columns u
        where u.table_schema = 'public' and u.table_name = c.table_name and u.column_name = 'user_id')) order by 1`;
  return rows.map((row) => row.name).filter((name) => !OURS.has(name));
}

async function isPlanted(name: string): Promise<boolean> {
  const [table = "", column = ""] = name.split(".");
  const { sql } = reef;
  const hex = Buffer.from(PHRASE).toString("hex");
  const rows = await sql`select 1 from ${sql(table)} t
    where ${sql(column)}::text like any(${[`%${PHRASE}%`, `%${hex}%`]}::text[]) limit 1`;
  return rows.length > 0;
}

/** Puts the phrase into every column, key and folder of a user. */
async function plant(user: TestUser, agents: { id: string; agent_id: string }[]): Promise<void> {
  const { sql, deps, dir } = reef;
  const bytes = Buffer.from(PHRASE);
  await sql`update users set name = ${PHRASE}, avatar_url = ${`https://example.org/${PHRASE}`}, email = ${`${PHRASE}@example.org`} where id = ${user.id}`;
  await sql`update refresh_tokens set device_name = ${PHRASE}, ip = ${PHRASE} where user_id = ${user.id}`;
  const customer = stripe.plantSubscription(`sub_${PHRASE}`);
  await sql`insert into stripe_customers (user_id, customer_id, checkout_session_id, checkout_url, checkout_price_id)
    values (${user.id}, ${customer}, ${PHRASE}, ${PHRASE}, ${PHRASE})`;
  await sql`update subscriptions set pay_url = ${PHRASE}, price_id = ${PHRASE} where user_id = ${user.id}`;
  await sql`insert into identities (provider, subject, user_id, email, provider_token)
    values ('google', ${PHRASE}, ${user.id}, ${`${PHRASE}@example.org`}, ${bytes})`;
  await sql`insert into one_time_tokens (id, user_id, kind, token_hash, expires_at)
    values (${newId()}, ${user.id}, 'reset_password', ${bytes}, now() + interval '1 day')`;
  await sql`insert into outbox (id, user_id, template, recipient, params, last_error, next_attempt_at)
    values (${newId()}, ${user.id}, 'verify', ${`${PHRASE}@example.org`}, ${sql.json({ name: PHRASE })}, ${PHRASE}, 'infinity')`;
  await sql`insert into idempotency_keys (user_id, key, request_hash, status, response)
    values (${user.id}, ${PHRASE}, ${bytes}, 200, ${PHRASE})`;
  await sql`update assistants set display_name = ${PHRASE}, state_reason = ${PHRASE} where user_id = ${user.id}`;
  await sql`update turns set error_code = ${PHRASE} where user_id = ${user.id}`;
  await sql`insert into usage_logs (id, user_id, date, kind, amount, limit_then, status, idempotency_key, settled_at)
    values (${newId()}, ${user.id}, '2020-01-01', 'text_messages', 1, 50, 'released', ${PHRASE}, now())`;
  await sql`insert into audit_log (id, actor, action, subject_user_id, ip, details)
    values (${newId()}, ${`user:${user.id}`}, 'session.login', ${user.id}, ${PHRASE}, ${sql.json({ reason: PHRASE })})`;
  const [turn] = await sql<{ id: string }[]>`select id from turns where user_id = ${user.id} limit 1`;
  await deps.redis.set(`turn:${turn!.id}:text`, PHRASE);
  await deps.redis.set(`plan:${user.id}`, PHRASE);
  await deps.redis.hset(`ws:connections:${user.id}`, PHRASE, "1");
  for (const days of [-1, 0, 1]) {
    const date = new Date(Date.now() + days * 86_400_000).toISOString().slice(0, 10);
    await deps.redis.set(`ratelimit:${user.id}:${date}`, PHRASE);
  }
  for (const { agent_id } of agents) {
    mkdirSync(join(dir, "parked", agent_id), { recursive: true });
    writeFileSync(join(dir, "parked", agent_id, "old.jsonl"), PHRASE);
    appendFileSync(join(dir, "workspaces", agent_id, "MEMORY.md"), PHRASE);
    mkdirSync(join(dir, "workspaces", `${agent_id}.draft.new`));
    writeFileSync(join(dir, "workspaces", `${agent_id}.draft.new`, "USER.md"), PHRASE);
  }
  for (const folder of ["state/media/inbound", "state/media/outbound", "state/media/outgoing", "home/.Trash"]) {
    mkdirSync(join(dir, folder), { recursive: true });
    writeFileSync(join(dir, folder, `${PHRASE}.png`), PHRASE);
  }
}

async function talk(user: TestUser, agentId: string, text: string): Promise<void> {
  const chat = await openChat(reef, user.token, agentId);
  chat.say(text);
  await chat.next("the answer", isAnswer);
  chat.close();
}

test("whoever leaves is found nowhere: rows, keys, files, logs; the neighbour is untouched", async () => {
  const { sql } = reef;
  const user = await makeUser(reef);
  const neighbour = await makeUser(reef);
  await sql`insert into subscriptions (user_id, plan, source, stripe_subscription_id) values (${user.id}, 'pro', 'stripe', ${`sub_${PHRASE}`})`;
  const agents = [await makeAssistant(user), await makeAssistant(user)];
  const near = await makeAssistant(neighbour);
  for (const { agent_id } of agents) await talk(user, agent_id, `remember ${PHRASE}`);
  await talk(neighbour, near.agent_id, "remember the pelican");
  await until("costs are known", async () => {
    const [row] = await sql<{ n: number }[]>`select count(*) as n from turns where cost_micro_usd is null`;
    return row!.n === 0;
  });
  await plant(user, agents);
  const columns = await listTextColumns();
  const missing = [];
  for (const name of columns) if (!(await isPlanted(name))) missing.push(name);
  // Whoever adds a column for a person's text plants it above, so that the search below is about it, too.
  expect(missing).toEqual([]);
  const words = [PHRASE, user.id];
  expect((await searchRedis(reef.env["REDIS_URL"]!, words)).length).toBeGreaterThanOrEqual(6);
  // Of each agent: transcript, parked state, memory, draft. Media may be gone already: nobody uses them.
  expect(searchFiles(reef.dir, [PHRASE]).length).toBeGreaterThanOrEqual(8);
  const before = await takeSnapshot(sql, reef.dir, neighbour.id, [near.agent_id]);
  expect(before).toContain("MEMORY.md");

  expect((await user.call("DELETE", "/api/user/account", { password: user.password })).status).toBe(202);
  await until("it is done", async () => (await sql`select 1 from account_deletions where step = 'done'`).length === 1);

  // The last mails are on their way; what was sent is deleted.
  const mails = await sql<{ template: string; recipient: string }[]>`
    delete from outbox where user_id is null returning template, recipient`;
  expect(mails.map(({ template, recipient }) => `${template} to ${recipient}`).toSorted()).toEqual([
    `deletion-finished to ${PHRASE}@example.org`,
    `deletion-requested to ${PHRASE}@example.org`,
  ]);
  expect(await searchDatabase(sql, [PHRASE, user.email])).toEqual([]);
  // Ids only: that this user was deleted, and what was audited.
  expect(await searchDatabase(sql, [user.id])).toEqual(["account_deletions", "audit_log"]);
  expect(await listTablesOf(sql, user.id)).toEqual(["account_deletions"]);
  const [audit] = await sql<{ n: number }[]>`
    select count(*) as n from audit_log where subject_user_id = ${user.id} and (ip is not null or details <> '{}')`;
  expect(audit!.n).toBe(0);
  // That a plan has changed is remembered for some seconds, by the id.
  await until("no key is left", async () => (await searchRedis(reef.env["REDIS_URL"]!, words)).length === 0);
  expect(searchFiles(reef.dir, words)).toEqual([]);
  expect(reef.logs.filter((line) => line.includes(PHRASE) || line.includes(user.email))).toEqual([]);
  expect(stripe.statusOf(`sub_${PHRASE}`)).toBe("canceled");
  expect(await takeSnapshot(sql, reef.dir, neighbour.id, [near.agent_id])).toBe(before);
  const findings = await checkInvariants(reef.deps, { patienceMs: 20_000, timeoutMs: 10_000 });
  expect(findings.filter((finding) => finding.status !== "ok")).toEqual([]);
});

test("the search can fail: a new table with a user's text is seen, planted or not", async () => {
  const { sql } = reef;
  const user = await makeUser(reef);
  await sql`create table notes (user_id uuid not null, note text, tags text[], body bytea, doc jsonb)`;
  try {
    expect((await listTextColumns()).filter((name) => name.startsWith("notes."))).toEqual([
      "notes.body",
      "notes.doc",
      "notes.note",
      "notes.tags",
    ]);
    for (const value of [
      sql`(${user.id}, 'needle-1', null, null, null)`,
      sql`(${user.id}, null, '{needle-1}', null, null)`,
      sql`(${user.id}, null, null, ${Buffer.from("x needle-1 y")}, null)`,
      sql`(${user.id}, null, null, null, ${sql.json({ deep: ["needle-1"] })})`,
    ]) {
      await sql`insert into notes values ${value}`;
      expect(await searchDatabase(sql, ["needle-1"])).toEqual(["notes"]);
      expect(await listTablesOf(sql, user.id)).toContain("notes");
      await sql`delete from notes`;
    }
  } finally {
    await sql`drop table notes`;
  }
});
