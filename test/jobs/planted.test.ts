import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { loadConfig } from "../../src/config.ts";
import type { Sql } from "../../src/db/connect.ts";
import { listConfigured } from "../../src/db/invariants.ts";
import { createDeps, type Deps } from "../../src/deps.ts";
import { newId } from "../../src/lib/ids.ts";
import { createLog } from "../../src/lib/log.ts";
import { checkInvariants, INVARIANTS } from "../../src/services/invariants.ts";
import { renderGatewayConfig } from "../../src/services/gatewayConfig.ts";
import { until, type TestReef } from "../harness.ts";
import { makeTown, type Person } from "./town.ts";

let reef: TestReef;
let deps: Deps;
let sql: Sql;
let people: Person[];
let failed: Person;
let stopped: Person;
let purged: Person;
let before: Map<string, number>;

const next = (): Person => people.pop() ?? expect.unreachable();
const counts = async () => {
  const findings = await checkInvariants(deps, { patienceMs: 0, timeoutMs: 10_000 });
  expect(findings.filter((finding) => finding.status === "unchecked")).toEqual([]);
  return new Map(findings.map((finding) => [finding.id, finding.violations]));
};

beforeAll(async () => {
  ({ reef, people, failed, stopped, purged } = await makeTown(36));
  // Nobody repairs what is planted.
  await reef.stopProcess();
  deps = createDeps(loadConfig(reef.env), createLog("silent"));
  sql = deps.sql;
  before = await counts();
  expect([...before].filter(([, n]) => n !== 0)).toEqual([]);
});
afterAll(async () => {
  await deps?.close();
  await reef?.stop();
});

/** A turn that runs as it should: message, reservation and numbers are in line. */
async function insertRunning(person: Person): Promise<string> {
  const [id, userId] = [newId(), person.user.id];
  await sql.begin(async (tx) => {
    const [row] = await tx<{ lastSeq: number }[]>`
      update assistants set last_seq = last_seq + 1, message_count = message_count + 1 where id = ${person.assistantId} returning last_seq`;
    const seq = row!.lastSeq;
    await tx`insert into turns (id, assistant_id, user_id, gateway_id, seq, status, attempts, lease_owner, lease_until, dispatched_at)
      values (${id}, ${person.assistantId}, ${userId}, 'main', ${seq}, 'dispatched', 1, ${newId()}, now() + interval '1 day', now())`;
    await tx`insert into messages (id, assistant_id, user_id, turn_id, seq, role, content, client_id)
      values (${newId()}, ${person.assistantId}, ${userId}, ${id}, ${seq}, 'user', 'hi', ${newId()})`;
    await tx`insert into usage_logs (id, user_id, date, kind, amount, limit_then, idempotency_key)
      select ${newId()}, user_id, date, 'text_messages', 1, 50, ${id} from daily_usage where user_id = ${userId}`;
    await tx`update daily_usage set text_messages = text_messages + 1 where user_id = ${userId}`;
  });
  return id;
}

/** A row of the ledger, and the day with it. */
async function insertUse(
  userId: string,
  use: { kind: string; amount: number; limit?: number; status?: string; expires?: string },
): Promise<void> {
  const { kind, amount, limit = 5_000, status = "committed", expires = null } = use;
  await sql`insert into usage_logs (id, user_id, date, kind, amount, limit_then, status, idempotency_key, settled_at, expires_at)
    select ${newId()}, user_id, date, ${kind}, ${amount}, ${limit}, ${status}, ${newId()},
      case when ${status} <> 'reserved' then now() end, now() + ${expires}::text::interval
    from daily_usage where user_id = ${userId}`;
  if (status !== "released")
    await sql`update daily_usage set ${sql(kind)} = ${sql(kind)} + ${amount} where user_id = ${userId}`;
}

const config = () => join(reef.dir, "openclaw.json");
/** Puts the file right, and waits until the gateway lives by it: the next case is to find only its own. */
const writeConfig = async () => {
  const wanted = await listConfigured(sql, deps.config.GATEWAY_ID);
  await deps.workspaces.writeConfig(renderGatewayConfig(deps, wanted));
  await until("the gateway has taken it", async () => {
    const listed = new Set(await deps.gateway.listAgents());
    return listed.size === wanted.length + 1 && wanted.every(({ agentId }) => listed.has(agentId));
  });
};
/** Changes the file for as long as a case looks. */
const edit = (change: (text: string) => string) => async () => {
  writeFileSync(config(), change(readFileSync(config(), "utf8")));
  return writeConfig;
};
const folder = (...names: string[]) => {
  mkdirSync(join(reef.dir, ...names), { recursive: true });
  return () => rmSync(join(reef.dir, ...names), { recursive: true });
};

type Undo = (() => unknown) | void;
/** What is planted, and exactly what is to be reported. Rows stay as they are: each case compares with before. */
const CASES: [string, string[], (person: Person) => Promise<Undo>][] = [
  [
    "a message whose turn has another number",
    ["message_turn"],
    async ({ user }) => void (await sql`update turns set seq = seq + 7 where user_id = ${user.id}`),
  ],
  [
    "a done turn without an answer",
    ["turn_answer"],
    async ({ user, assistantId }) => {
      await sql`delete from messages where user_id = ${user.id} and role = 'assistant'`;
      await sql`update assistants set last_seq = 1, message_count = 1 where id = ${assistantId}`;
    },
  ],
  [
    "an answer that says it failed, of a turn that says it is done",
    ["turn_answer"],
    async ({ user }) =>
      void (await sql`update messages set finish = 'error' where user_id = ${user.id} and role = 'assistant'`),
  ],
  [
    "a turn that has ended at no time",
    ["turn_finished_at"],
    async ({ user }) => void (await sql`update turns set finished_at = null where user_id = ${user.id}`),
  ],
  [
    "two answers at a time",
    ["one_running"],
    async (person) => {
      await sql`drop index turns_one_running`;
      await insertRunning(person);
      await insertRunning(person);
    },
  ],
  [
    "a running turn beyond its budget",
    ["stuck_turn"],
    async (person) => {
      const id = await insertRunning(person);
      await sql`update turns set dispatched_at = now() - interval '1 hour' where id = ${id}`;
    },
  ],
  [
    "a queued turn beyond its budget",
    ["stuck_turn"],
    async (person) => {
      const id = await insertRunning(person);
      await sql`update turns set status = 'queued', queued_at = now() - interval '1 hour' where id = ${id}`;
    },
  ],
  [
    "a running turn that nobody holds",
    ["stuck_turn"],
    async (person) => {
      const id = await insertRunning(person);
      await sql`update turns set lease_until = null where id = ${id}`;
    },
  ],
  [
    "a gap in the numbers",
    ["seq_gapless"],
    async ({ user }) => void (await sql`update messages set seq = 3 where user_id = ${user.id} and role = 'assistant'`),
  ],
  [
    "a wrong number of messages",
    ["seq_gapless"],
    async ({ assistantId }) => void (await sql`update assistants set message_count = 9 where id = ${assistantId}`),
  ],
  [
    "a day with more than its ledger",
    ["usage_sum"],
    async ({ user }) => void (await sql`update daily_usage set text_messages = 2 where user_id = ${user.id}`),
  ],
  [
    "a day with more seconds than its ledger",
    ["usage_sum"],
    async ({ user }) => void (await sql`update daily_usage set voice_output_seconds = 1 where user_id = ${user.id}`),
  ],
  [
    "characters of the ledger that the day does not know",
    ["usage_sum"],
    async ({ user }) => {
      await insertUse(user.id, { kind: "tts_characters", amount: 7 });
      await sql`update daily_usage set tts_characters = 0 where user_id = ${user.id}`;
    },
  ],
  [
    "a ledger without its day",
    ["usage_sum"],
    async ({ user }) => void (await sql`delete from daily_usage where user_id = ${user.id}`),
  ],
  [
    "more than the limit",
    ["usage_limit"],
    async ({ user }) => void (await sql`update usage_logs set limit_then = 0 where user_id = ${user.id}`),
  ],
  [
    "more seconds than the limit",
    ["usage_limit"],
    async ({ user }) => insertUse(user.id, { kind: "voice_input_seconds", amount: 121, limit: 120 }),
  ],
  [
    "seconds reserved for work that is long over",
    ["ledger_settled"],
    async ({ user }) =>
      insertUse(user.id, { kind: "voice_input_seconds", amount: 5, status: "reserved", expires: "-61 seconds" }),
  ],
  [
    "characters reserved for ever",
    ["ledger_settled"],
    async ({ user }) => insertUse(user.id, { kind: "tts_characters", amount: 5, status: "reserved" }),
  ],
  [
    "a use that was settled at no time",
    ["ledger_settled"],
    async ({ user }) => {
      await insertUse(user.id, { kind: "voice_output_seconds", amount: 5 });
      await sql`update usage_logs set settled_at = null where user_id = ${user.id} and kind = 'voice_output_seconds'`;
    },
  ],
  [
    "nothing: uses of every kind and state, in line",
    [],
    async ({ user }) => {
      for (const kind of ["voice_input_seconds", "voice_output_seconds", "tts_characters"] as const) {
        await insertUse(user.id, { kind, amount: 3 });
        await insertUse(user.id, { kind, amount: 4, status: "released" });
        await insertUse(user.id, { kind, amount: 5, status: "reserved", expires: "-30 seconds" });
      }
    },
  ],
  [
    "an answered turn that is not charged",
    ["ledger_settled"],
    async ({ user }) =>
      void (await sql`update usage_logs set status = 'reserved', settled_at = null where user_id = ${user.id}`),
  ],
  [
    "a failed turn that is charged",
    ["ledger_settled"],
    async () => {
      await sql`update usage_logs set status = 'committed' where user_id = ${failed.user.id} and status = 'released'`;
      await sql`update daily_usage set text_messages = text_messages + 1 where user_id = ${failed.user.id}`;
    },
  ],
  [
    "a turn without a reservation",
    ["ledger_settled"],
    async ({ user }) => {
      await sql`delete from usage_logs where user_id = ${user.id}`;
      await sql`delete from daily_usage where user_id = ${user.id}`;
    },
  ],
  ["a broken configuration", ["config_valid", "config_current"], edit((text) => text.slice(0, -20))],
  [
    "a changed configuration",
    ["config_current"],
    edit((text) => text.replace('"timeoutSeconds": ', '"timeoutSeconds": 1')),
  ],
  [
    "somebody unknown in the configuration",
    ["config_current", "configured_awake"],
    edit((text) => text.replace('"reef_placeholder":', '"stranger": { "name": "x" }, "reef_placeholder":')),
  ],
  [
    "a paused one that is still configured",
    ["configured_awake"],
    async ({ assistantId }) => void (await sql`update assistants set status = 'paused' where id = ${assistantId}`),
  ],
  [
    "one of a suspended user that is still configured",
    ["configured_awake"],
    async ({ user }) => void (await sql`update users set status = 'suspended' where id = ${user.id}`),
  ],
  [
    "a deleted one that nobody purges",
    ["configured_awake", "purge_begun"],
    async ({ assistantId }) => void (await sql`update assistants set status = 'deleted' where id = ${assistantId}`),
  ],
  [
    "a purged one that has left its conversation",
    ["purged_rows"],
    async ({ assistantId, agentId }) => {
      await sql`update assistants set status = 'deleted', purge_step = 'purged', state = 'asleep' where id = ${assistantId}`;
      await writeConfig();
      await deps.workspaces.purge(agentId);
    },
  ],
  ["a purged one that has left a workspace", ["purged_files"], async () => folder("workspaces", purged.agentId)],
  ["a purged one that has left its state", ["purged_files"], async () => folder("state", "agents", purged.agentId)],
  ["a purged one that is still parked", ["purged_files"], async () => folder("parked", purged.agentId)],
  ["files of an id of ours that no row has", ["purged_files"], async () => folder("parked", `agent_${"0".repeat(20)}`)],
  [
    "an account that leaves and that nobody deletes",
    ["deletion_begun"],
    async () => {
      await sql`update users set status = 'deleting' where id = ${purged.user.id}`;
      return () => sql`update users set status = 'active' where id = ${purged.user.id}`;
    },
  ],
  [
    "the deletion of an account that stays",
    ["deletion_begun"],
    async () => {
      await sql`insert into account_deletions (user_id) values (${purged.user.id})`;
      return () => sql`delete from account_deletions where user_id = ${purged.user.id}`;
    },
  ],
  [
    "a deleted account that has left its rows",
    ["deleted_rows"],
    async () => {
      await sql`insert into account_deletions (user_id, step) values (${purged.user.id}, 'redis')`;
      return () => sql`delete from account_deletions where user_id = ${purged.user.id}`;
    },
  ],
  [
    "an address that a deleted account has left in the audit log",
    ["deleted_rows"],
    async () => {
      const id = newId();
      await sql`insert into account_deletions (user_id, step, finished_at) values (${id}, 'done', now())`;
      await sql`insert into audit_log (id, actor, action, subject_user_id, ip)
        values (${newId()}, 'unknown', 'session.login_failed', ${id}, '192.0.2.1')`;
    },
  ],
  [
    "a deleted account whose address is kept",
    ["deleted_rows"],
    async () =>
      void (await sql`insert into account_deletions (user_id, step, finished_at, recipient)
        values (${newId()}, 'done', now(), 'kept@example.org')`),
  ],
  [
    "a message of somebody else",
    ["message_owner"],
    async ({ user }) =>
      void (await sql`update messages set user_id = ${stopped.user.id} where user_id = ${user.id} and seq = 1`),
  ],
  [
    "a turn of somebody else",
    ["turn_owner"],
    async ({ user }) => void (await sql`update turns set user_id = ${stopped.user.id} where user_id = ${user.id}`),
  ],
  [
    "a charge for somebody else",
    ["ledger_owner"],
    async ({ user }) => {
      await sql`update usage_logs set user_id = ${stopped.user.id} where user_id = ${user.id}`;
      await sql`delete from daily_usage where user_id = ${user.id}`;
      await sql`update daily_usage set text_messages = text_messages + 1 where user_id = ${stopped.user.id}`;
    },
  ],
  [
    "an event of Stripe's that nobody works at",
    ["billing_inbox"],
    async () =>
      void (await sql`insert into stripe_events (id, type, created_at, received_at)
        values ('evt_1', 'invoice.paid', now(), now() - interval '6 minutes')`),
  ],
  [
    "a plan that was applied and is not in force",
    ["billing_applied"],
    async ({ user }) => void (await sql`update users set applied_plan = 'pro' where id = ${user.id}`),
  ],
  [
    "more assistants active than the plan gives",
    ["billing_fitted"],
    async ({ user }) =>
      void (await sql`insert into assistants (id, user_id, gateway_id, agent_id, voice, model)
        values (${newId()}, ${user.id}, 'main', ${`agent_${newId().replaceAll("-", "").slice(0, 20)}`}, 'nova', 'm')`),
  ],
  [
    "two current prices of one plan",
    ["billing_prices"],
    async () => {
      await sql`drop index stripe_prices_current`;
      for (const id of ["price_1", "price_2"])
        await sql`insert into stripe_prices (price_id, plan, cycle, livemode, product_id, amount_micro_usd)
          values (${id}, 'pro', 'monthly', true, 'prod_1', 1)`;
    },
  ],
];

// A case that names no person needs none of its own.
for (const [name, reported, plant] of CASES) {
  test(name, async () => {
    const undo = await plant(plant.length > 0 ? next() : failed);
    const [then, now] = [before, await counts()];
    await undo?.();
    if (!undo) before = now;
    expect([...now].filter(([id, n]) => n !== then.get(id)).map(([id]) => id)).toEqual(reported);
  });
}
test("every invariant has a case", () => {
  const planted = new Set(CASES.flatMap(([, reported]) => reported));
  expect(INVARIANTS.map((invariant) => invariant.id).filter((id) => !planted.has(id))).toEqual([]);
});
