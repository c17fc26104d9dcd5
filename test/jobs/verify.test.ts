import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { writeRunningFile } from "../../scripts/services/runningFile.ts";
import { loadConfig } from "../../src/config.ts";
import type { Sql } from "../../src/db/connect.ts";
import { listConfigured } from "../../src/db/invariants.ts";
import { createDeps, type Deps } from "../../src/deps.ts";
import { newId } from "../../src/lib/ids.ts";
import { createLog } from "../../src/lib/log.ts";
import { checkInvariants, INVARIANTS, type Finding } from "../../src/services/invariants.ts";
import { renderFor } from "../../src/services/reconciler.ts";
import { isAnswer, makeAssistant, makeUser, openChat, type TestUser } from "../factories.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";

interface Person {
  user: TestUser;
  assistantId: string;
  agentId: string;
}

let reef: TestReef;
let deps: Deps;
let sql: Sql;
/** With one answered message each; a case takes its own. */
const people: Person[] = [];
let purged: Person;
let failed: Person;
let stopped: Person;

const options = { patienceMs: 0, timeoutMs: 10_000 };
const bad = (findings: Finding[]) => findings.filter((finding) => finding.status !== "ok");
const next = (): Person => people.pop() ?? expect.unreachable();

async function makePerson(): Promise<Person> {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  return { user, assistantId: assistant.id, agentId: assistant.agent_id };
}

async function talk(person: Person, text: string, stop = false): Promise<void> {
  const chat = await openChat(reef, person.user.token, person.agentId);
  chat.say(text);
  if (stop) {
    await chat.next("some text", (frame) => frame.type === "chunk");
    chat.send({ type: "stop" });
  }
  await chat.next("the answer", isAnswer);
  chat.close();
}

beforeAll(async () => {
  reef = await startTestReef();
  reef.gateway.setAnswer(async function* (turn) {
    yield { text: "Well, " };
    if (turn.text === "fail") yield { error: "format" };
    if (turn.text === "long") yield { hang: true };
    yield { text: "yes." };
  });
  for (let n = 0; n < 26; n++) people.push(await makePerson());
  await Promise.all(people.map((person) => talk(person, "hello")));
  [purged, failed, stopped] = [next(), next(), next()];
  await talk(failed, "fail");
  await talk(stopped, "long", true);
  const paused = next();
  await paused.user.call("POST", `/api/assistants/${paused.assistantId}/pause`);
  await purged.user.call("DELETE", `/api/assistants/${purged.assistantId}`);
  await until("it is purged and the paused one sleeps", async () => {
    const [row] = await reef.sql<{ n: number }[]>`
      select count(*)::int as n from assistants
      where (id = ${purged.assistantId} and purge_step = 'purged') or (id = ${paused.assistantId} and state = 'asleep')`;
    return row!.n === 2;
  });
}, 60_000);

afterAll(async () => {
  await deps?.close();
  await reef.stop();
});

test("a system with answered, failed, stopped, paused and deleted ones holds, while it runs", async () => {
  const findings = await checkInvariants(reef.deps, { ...options, patienceMs: 20_000 });
  expect(bad(findings)).toEqual([]);
  expect(findings.map((finding) => finding.id)).toEqual(INVARIANTS.map((invariant) => invariant.id));
  const totals = Object.fromEntries(findings.map((finding) => [finding.id, finding.total]));
  expect(totals).toMatchObject({ turn_answer: 27, message_owner: 54, seq_gapless: 26, purged_rows: 1, usage_sum: 26 });
  expect(totals["configured_awake"]).toBe(24);
}, 30_000);

test("what settles is looked at again, and counts only when it stays", async () => {
  const path = join(reef.dir, "openclaw.json");
  const before = readFileSync(path, "utf8");
  let looks = 0;
  const checking = checkInvariants(reef.deps, {
    ...options,
    patienceMs: 20_000,
    onBegin: ({ id }) => {
      if (id !== "config_current") return;
      looks += 1;
      if (looks <= 2) writeFileSync(path, looks === 1 ? `${before} ` : before);
    },
  });
  expect(bad(await checking)).toEqual([]);
  expect(looks).toBe(2);
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

const config = () => join(reef.dir, "openclaw.json");
/** Puts the file right, and waits until the gateway lives by it: the next case is to find only its own. */
const writeConfig = async () => {
  const wanted = await listConfigured(sql, deps.config.GATEWAY_ID);
  await deps.workspaces.writeConfig(renderFor(deps, wanted));
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
];

describe("planted and found, and nothing else", () => {
  const TAKES_NOBODY =
    /^(a failed turn|a broken|a changed|somebody unknown|a purged one that (has left a w|has left its s|is)|files)/;
  let before: Map<string, number>;
  const counts = async () => {
    const findings = await checkInvariants(deps, options);
    expect(findings.filter((finding) => finding.status === "unchecked")).toEqual([]);
    return new Map(findings.map((finding) => [finding.id, finding.violations]));
  };
  beforeAll(async () => {
    // Nobody repairs what is planted.
    await reef.stopProcess();
    deps = createDeps(loadConfig(reef.env), createLog("silent"));
    sql = deps.sql;
    before = await counts();
    expect([...before.values()].every((n) => n === 0)).toBe(true);
  });
  for (const [name, reported, plant] of CASES) {
    test(name, async () => {
      const undo = await plant(TAKES_NOBODY.test(name) ? failed : next());
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
});

describe("the command", () => {
  const root = resolve(import.meta.dir, "../..");
  const run = (env: Record<string, string>, ...args: string[]) => runScript("src/jobs/verify.ts", env, ...args);
  const runScript = async (script: string, env: Record<string, string>, ...args: string[]) => {
    const child = Bun.spawn([process.execPath, "--no-env-file", join(root, script), ...args], {
      env: { PATH: process.env["PATH"] ?? "", ...env },
      stdout: "pipe",
      stderr: "pipe",
    });
    const [out, said] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
    return { code: await child.exited, out, said };
  };

  test("violations: 1, each line with its count, a summary last; --json says the same", async () => {
    const shown = await run(reef.env, "--patience", "0");
    expect(shown.code).toBe(1);
    const lines = shown.out.trim().split("\n");
    expect(lines.length).toBe(INVARIANTS.length + 1);
    expect(lines.find((line) => line.includes("seq_gapless"))).toMatch(
      /^BAD 2 .* 2 of 26: [0-9a-f-]{36}, [0-9a-f-]{36}$/,
    );
    expect(lines.find((line) => line.includes("config_valid"))).toMatch(/^ok {2}4 .* 0 of 1$/);
    expect(lines.at(-1)).toMatch(/^\d+ of 18 hold, \d+ violated$/);
    const json = JSON.parse((await run(reef.env, "--patience", "0", "--json")).out);
    expect(json.outcome).toBe("violated");
    expect(json.findings.find((finding: Finding) => finding.id === "seq_gapless").violations).toBe(2);
  }, 30_000);

  test("a healthy system: 0; without its gateway: 2, and the rest is checked all the same", async () => {
    const healthy = await startTestReef();
    try {
      expect(await run(healthy.env)).toMatchObject({ code: 0, said: "" });
      // As npm start tells it: only settings of ours, for its owner only.
      writeRunningFile(healthy.dir, { ...healthy.env, OPENAI_API_KEY: "sk-planted" });
      const file = join(healthy.dir, "running.json");
      expect([statSync(file).mode & 0o777, readFileSync(file, "utf8").includes("sk-planted")]).toEqual([0o600, false]);
      const found = await runScript("scripts/verify.ts", { REEF_DATA_DIR: healthy.dir });
      expect([found.code, found.out.trim().split("\n").at(-1)]).toEqual([0, "18 of 18 hold, 0 violated"]);
      await healthy.gateway.stop();
      const { code, out } = await run(healthy.env);
      expect([code, out.trim().split("\n").at(-1)]).toEqual([2, "16 of 18 hold, 0 violated, 2 could not be checked"]);
    } finally {
      await healthy.stop();
    }
  }, 40_000);

  test("no settings, a database that is away, an unknown option: 2 and a sentence", async () => {
    expect(await run({})).toMatchObject({ code: 2, said: expect.stringContaining("No running system is known") });
    const away = { ...reef.env, DATABASE_URL: "postgres://u:secret-word@127.0.0.1:1/x" };
    const { code, said } = await run(away);
    expect([code, said.includes("The database does not answer"), said.includes("secret-word")]).toEqual([
      2,
      true,
      false,
    ]);
    expect((await run(reef.env, "--wrong")).code).toBe(2);
    expect((await run({}, "--help")).out).toContain("npm run verify");
  }, 30_000);
});
