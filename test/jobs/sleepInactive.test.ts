import { afterAll, beforeAll, expect, test } from "bun:test";
import { loadConfig } from "../../src/config.ts";
import { createDeps } from "../../src/deps.ts";
import { newId } from "../../src/lib/ids.ts";
import { createLog } from "../../src/lib/log.ts";
import { sleepInactiveAssistants } from "../../src/services/sleepInactive.ts";
import { isAnswer, makeAssistant, makeUser, openChat } from "../factories.ts";
import { startProcess, startTestReef, type TestReef } from "../harness.ts";
import { runProgram } from "./program.ts";

// Nobody is put to sleep by idleness here: what sleeps was put to sleep by the job.
let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef({ GATEWAY_IDLE_SLEEP_MS: "86400000" })));
afterAll(() => reef.stop());

const never = new AbortController().signal;

async function makeOwner() {
  const user = await makeUser(reef);
  const { id, agent_id: agentId } = await makeAssistant(user);
  const chat = await openChat(reef, user.token, agentId);
  chat.say("hello");
  await chat.next("an answer", isAnswer);
  chat.close();
  return { user, id: id as string, agentId: agentId as string };
}
test("the unused of free plans sleep, whatever the processes do; nothing is lost, and a message wakes them", async () => {
  const [inactive, lately, paying, waiting, resting] = [
    await makeOwner(),
    await makeOwner(),
    await makeOwner(),
    await makeOwner(),
    await makeOwner(),
  ];
  const { sql } = reef;
  await sql`insert into subscriptions (user_id, source, plan, status) values (${paying.user.id}, 'grant', 'pro', 'active')`;
  // No process is there that would put anybody to sleep, or answer.
  await reef.stopProcess();
  const deps = createDeps(loadConfig(reef.env), createLog("silent"));
  const unused = (id: string, days: number) =>
    deps.sql`update assistants set last_used_at = now() - make_interval(days => ${days}) where id = ${id}`;
  for (const { id } of [inactive, paying, waiting, resting]) await unused(id, 15);
  await unused(lately.id, 13);
  await deps.sql`update assistants set state = 'awake' where id <> ${resting.id}`;
  await deps.sql`update assistants set state = 'asleep' where id = ${resting.id}`;
  await deps.sql`insert into turns (id, assistant_id, user_id, gateway_id, seq)
    values (${newId()}, ${waiting.id}, ${waiting.user.id}, 'main', 99)`;
  const { code, out } = await runProgram(reef.env, "src/jobs/sleepInactive.ts");
  expect([code, out]).toEqual([
    0,
    "sleep-inactive: ok: 3 free assistants unused for 14 days: 1 put to sleep, 1 busy, the others slept",
  ]);
  const states = async () =>
    Object.fromEntries(
      (await deps.sql<{ id: string; state: string }[]>`select id, state from assistants`).map(({ id, state }) => [
        id,
        state,
      ]),
    );
  expect(await states()).toEqual({
    [inactive.id]: "asleep",
    [lately.id]: "awake",
    [paying.id]: "awake",
    [waiting.id]: "awake",
    [resting.id]: "asleep",
  });
  // Again: nothing is left to do. A shorter time takes more.
  expect(await sleepInactiveAssistants(deps, never)).toMatchObject({
    details: { inactive: 3, put_to_sleep: 0, busy: 1 },
  });
  const shorter = { ...deps, config: { ...deps.config, SLEEP_INACTIVE_DAYS: 12 } };
  expect(await sleepInactiveAssistants(shorter, never)).toMatchObject({ details: { inactive: 4, put_to_sleep: 1 } });
  await deps.sql`delete from turns where seq = 99`;
  await deps.close();

  const process = await startProcess(reef.env);
  try {
    const chat = await openChat(process, inactive.user.token, inactive.agentId);
    chat.say("still there?");
    await chat.next("the answer of one who was woken", isAnswer);
    chat.close();
    const said = await process.deps
      .sql`select content from messages where assistant_id = ${inactive.id} and role = 'user' order by seq`;
    expect(said.map((row) => row["content"])).toEqual(["hello", "still there?"]);
  } finally {
    await process.stop();
  }
});
