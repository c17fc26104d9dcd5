import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createBackupFolder } from "../../src/clients/backupFolder.ts";
import { recordErasures } from "../../src/services/erasures.ts";
import { readBackupState } from "../../src/services/backupState.ts";
import { loadConfig } from "../../src/config.ts";
import { realClock } from "../../src/lib/clock.ts";
import { receiptSchema, type Receipt } from "../../src/services/verifyBackup.ts";
import { searchRedis } from "../deletion/search.ts";
import { createPerson, openChat, PASSWORD, request, until, type Person } from "../gateway/people.ts";
import { startStack, type Stack } from "../gateway/realGateway.ts";
import { listBackups, run, runJob, startSurroundings, type Surroundings } from "./surroundings.ts";

setDefaultTimeout(120_000);

let around: Surroundings;
let stack: Stack;
let ada: Person;
let bob: Person;
let env: Record<string, string>;

beforeAll(async () => {
  around = await startSurroundings();
  stack = await startStack({}, around.postgres.url);
  env = { ...stack.env, ...around.env };
  const people = await Promise.all([createPerson(stack), createPerson(stack), createPerson(stack)]);
  [ada, bob] = people;
});
afterAll(async () => {
  await stack?.close();
  await around?.close();
});

const receiptOf = (name: string): Receipt =>
  receiptSchema.parse(JSON.parse(readFileSync(join(around.backups, "receipts", `${name}.json`), "utf8")));

/** Says one thing after the other until it is stopped; resolves with how many were answered. */
async function keepTalking(person: Person, stopped: () => boolean): Promise<number> {
  const chat = await openChat(stack, person);
  let answered = 0;
  for (; !stopped(); answered += 1) await chat.say(`message ${answered} of ${person.agentId}`);
  chat.close();
  return answered;
}

test("a backup made while people talk is restored by the drill: rows, workspaces, invariants, a conversation", async () => {
  writeFileSync(join(ada.workspace, "MEMORY.md"), "She keeps bees.\n");
  let stopped = false;
  const talking = keepTalking(ada, () => stopped);
  await until("somebody has been answered", async () => {
    const [row] = await stack.sql<{ n: number }[]>`select count(*)::int as n from turns where status = 'done'`;
    return row!.n > 1;
  });
  const backup = await runJob("backup", env);
  expect(backup.output).toContain("backup: ok");
  const [before] = await stack.sql<{ n: number }[]>`select count(*)::int as n from turns where status = 'done'`;
  await until("it goes on", async () => {
    const [row] = await stack.sql<{ n: number }[]>`select count(*)::int as n from turns where status = 'done'`;
    return row!.n > before!.n;
  });
  stopped = true;
  // The backup held nobody up.
  expect(await talking).toBeGreaterThan(2);

  // Somebody leaves after the backup; any later backup would note it.
  await request(stack, "DELETE", "/api/user/account", bob.token, { password: PASSWORD });
  await until("Bob is gone", async () => {
    const [row] = await stack.sql`select 1 from account_deletions where user_id = ${bob.userId} and step = 'done'`;
    return row;
  });
  await recordErasures(stack, createBackupFolder(around.backups));

  const drill = await runJob("verifyBackup", env);
  expect(drill.output).toContain("verify-backup: ok");
  expect(drill.code).toBe(0);
  const [name] = listBackups(around.backups);
  const receipt = receiptOf(name!);
  expect(receipt).toMatchObject({
    ok: true,
    proof: "verified",
    fault: null,
    rows: { wrong: [] },
    workspaces: { total: 3, compared: 3, wrong: [] },
    // The restored gateway lets go of him, too, and the invariants say that nothing of him is left.
    erasedAgain: { users: 1, assistants: 1, left: 1 },
    invariants: { broken: [] },
    conversation: { assistantId: ada.assistantId, answered: true, history: true, memory: true },
  });
  expect(receipt.rows!.total).toBeGreaterThan(10);
  expect(receipt.seconds.untilServing).toBeGreaterThan(0);
  const state = await readBackupState({ sql: stack.sql, config: loadConfig(stack.env), clock: realClock });
  expect(state.lastDrill?.ok).toBe(true);
  expect(state.verifiedAt).not.toBeNull();
  // Nothing of it is left, and nobody's own conversation has it.
  expect(readdirSync(tmpdir()).filter((entry) => entry.startsWith("reef-drill-"))).toEqual([]);
  expect((await searchRedis(stack.env["REDIS_URL"]!, ["drill-"])).filter((key) => key.startsWith("drill-"))).toEqual(
    [],
  );
  const [said] = await stack.sql<{ n: number }[]>`select count(*)::int as n from messages where content like '%drill%'`;
  expect(said!.n).toBe(0);
});

test("a backup that lacks a row is found out", async () => {
  const [name] = listBackups(around.backups);
  const file = join(around.backups, name!, "manifest.json");
  const text = readFileSync(file, "utf8");
  writeFileSync(
    file,
    text.replace(/"messages": (\d+)/, (_, n) => `"messages": ${Number(n) + 1}`),
  );
  const damaged = await run(["scripts/bun", "scripts/drill.ts"], env);
  expect(damaged.code).toBe(1);
  expect(receiptOf(name!)).toMatchObject({ ok: false, proof: "failed", fault: "damaged: manifest.json" });
  // Also when whoever changed it made the sums anew.
  const sums = join(around.backups, name!, "SHA256SUMS");
  const hash = new Bun.CryptoHasher("sha256").update(readFileSync(file)).digest("hex");
  writeFileSync(sums, readFileSync(sums, "utf8").replace(/^.{64} {2}manifest.json$/m, `${hash}  manifest.json`));
  expect((await run(["scripts/bun", "scripts/drill.ts"], env)).code).toBe(1);
  expect(receiptOf(name!)).toMatchObject({ proof: "failed", fault: "other numbers of rows: messages" });
});
