import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { makeAssistant, makeUser } from "../factories.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";

let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef()));
afterAll(() => reef.stop());

const stateOf = async (user: { call: Awaited<ReturnType<typeof makeUser>>["call"] }, id: string) =>
  (await user.call("GET", `/api/assistants/${id}`)).body.state;

test("created, listed, renamed, awake", async () => {
  const user = await makeUser(reef);
  const created = await user.call("POST", "/api/assistants", { display_name: "Coral", voice: "alloy" });
  expect([created.status, created.body.display_name, created.body.voice, created.body.status]).toEqual([
    201,
    "Coral",
    "alloy",
    "active",
  ]);
  const renamed = await user.call("PUT", `/api/assistants/${created.body.id}`, { display_name: "Reef" });
  expect(renamed.body.display_name).toBe("Reef");
  expect((await user.call("GET", "/api/assistants")).body.map((item: { id: string }) => item.id)).toEqual([
    created.body.id,
  ]);
  await until("it is awake", async () => (await stateOf(user, created.body.id)) === "awake");
  expect(reef.gateway.agents).toContain(created.body.agent_id);
});

test("20 parallel creations on the free plan make one assistant", async () => {
  const user = await makeUser(reef);
  const answers = await Promise.all(Array.from({ length: 20 }, () => user.call("POST", "/api/assistants", {})));
  expect(answers.filter((answer) => answer.status === 201).length).toBe(1);
  const refused = answers.find((answer) => answer.status !== 201)!;
  expect([refused.status, refused.body.code, refused.body.limit, refused.body.upgrade_to]).toEqual([
    403,
    "assistant_limit_reached",
    1,
    "pro",
  ]);
});

test("a voice outside the plan is refused", async () => {
  const user = await makeUser(reef);
  const answer = await user.call("POST", "/api/assistants", { voice: "onyx" });
  expect([answer.status, answer.body.code, answer.body.upgrade_to]).toEqual([403, "voice_not_in_plan", "pro"]);
});

test("Idempotency-Key: the same request once, another one is a conflict", async () => {
  const user = await makeUser(reef);
  const headers = { "idempotency-key": "create-1" };
  const first = await user.call("POST", "/api/assistants", { display_name: "One" }, headers);
  const second = await user.call("POST", "/api/assistants", { display_name: "One" }, headers);
  expect([second.status, second.body]).toEqual([201, first.body]);
  expect((await user.call("POST", "/api/assistants", { display_name: "Two" }, headers)).body.code).toBe(
    "idempotency_conflict",
  );
});

test("paused: keeps its data, refuses messages, sleeps; resumed: wakes", async () => {
  const user = await makeUser(reef);
  const { id } = await makeAssistant(user);
  await until("it is awake", async () => (await stateOf(user, id)) === "awake");
  expect((await user.call("POST", `/api/assistants/${id}/pause`)).body.status).toBe("paused");
  const refused = await user.call("POST", `/api/assistants/${id}/messages`, {
    content: "hi",
    client_id: crypto.randomUUID(),
  });
  expect([refused.status, refused.body.code]).toEqual([409, "assistant_paused"]);
  await until("it sleeps", async () => (await stateOf(user, id)) === "asleep");
  await user.call("POST", `/api/assistants/${id}/resume`);
  await until("it is awake again", async () => (await stateOf(user, id)) === "awake");
  const [usage] =
    await reef.sql`select coalesce(sum(text_messages), 0)::int as used from daily_usage where user_id = ${user.id}`;
  expect(usage!["used"]).toBe(0);
});

test("deleted: 404 at once, then gone from configuration, folders and tables", async () => {
  const user = await makeUser(reef);
  const { id, agent_id } = await makeAssistant(user);
  await user.call("POST", `/api/assistants/${id}/messages`, {
    content: "remember the phrase",
    client_id: crypto.randomUUID(),
  });
  await until(
    "it has answered",
    async () => (await user.call("GET", `/api/assistants/${id}`)).body.message_count === 2,
  );
  expect((await user.call("DELETE", `/api/assistants/${id}`)).status).toBe(200);
  expect((await user.call("GET", `/api/assistants/${id}`)).status).toBe(404);
  await until(
    "it is purged",
    async () => (await reef.sql`select 1 from assistants where id = ${id} and purge_step = 'purged'`).length === 1,
  );
  expect(readFileSync(join(reef.dir, "openclaw.json"), "utf8")).not.toContain(agent_id);
  for (const folder of ["workspaces", "state/agents", "parked"])
    expect(existsSync(join(reef.dir, folder, agent_id))).toBe(false);
  expect((await reef.sql`select 1 from messages where assistant_id = ${id}`).length).toBe(0);
});

test("a hand edit of the gateway's configuration is put back", async () => {
  const user = await makeUser(reef);
  const { id } = await makeAssistant(user);
  await until("it is awake", async () => (await stateOf(user, id)) === "awake");
  const path = join(reef.dir, "openclaw.json");
  const before = readFileSync(path, "utf8");
  await Bun.write(path, before.replace('"timeoutSeconds": ', '"timeoutSeconds": 1'));
  await makeAssistant(await makeUser(reef));
  await until("the edit is gone", () => !readFileSync(path, "utf8").includes('"timeoutSeconds": 1330'));
  await until(
    "it was counted",
    async () => (await reef.sql`select 1 from gateways where drift_repairs > 0`).length === 1,
  );
});
