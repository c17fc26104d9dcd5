import { afterAll, beforeAll, expect, test } from "bun:test";
import { isAnswer, makeAssistant, makeUser, openChat, type Json, type TestUser } from "../factories.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";

const QUESTION = "a question that nobody else may read";
const ANSWER = "an answer that nobody else may read";

let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef()));
afterAll(() => reef.stop());

const lines = (from = 0): Json[] => reef.logs.slice(from).map((line) => JSON.parse(line));

/** Nothing of a person's is in any line that was ever written. */
function expectDiscreet(user: TestUser): void {
  const text = reef.logs.join("");
  expect(text.length).toBeGreaterThan(0);
  for (const secret of [QUESTION, ANSWER, user.email, user.password, user.token, user.refreshToken])
    expect(text).not.toContain(secret);
}

test("every line of a turn says which turn, assistant and user it is of; no line says what was said, or by whom", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  reef.gateway.setAnswer(async function* (turn) {
    if (turn.text.includes("fail")) yield { error: "auth" };
    yield { text: ANSWER };
  });
  const from = reef.logs.length;
  const chat = await openChat(reef, user.token, assistant.agent_id);
  chat.say(QUESTION);
  await chat.next("the answer", isAnswer);
  chat.say(`${QUESTION}: fail`);
  await chat.next("the failure", (frame) => frame.type === "error");
  await until("the end is written", () => lines(from).filter(({ msg }) => msg === "turn ended").length === 2);
  const ofTurns = lines(from).filter(({ msg }) => /^(turn|model) /.test(msg));
  expect(ofTurns.map(({ msg }) => msg)).toEqual([
    "turn started",
    "turn ended",
    "turn started",
    "model failed",
    "turn ended",
  ]);
  const turns = (await reef.sql`select id from turns where user_id = ${user.id} order by seq`).map((row) => row["id"]);
  const ids = (turn: string) => ({ turn_id: turn, assistant_id: assistant.id, user_id: user.id });
  for (const [n, line] of ofTurns.entries()) expect(line).toMatchObject(ids(turns[n < 2 ? 0 : 1]));
  expectDiscreet(user);
});

test("every line of a request says which request, and whose where that is known", async () => {
  const user = await makeUser(reef);
  const { id } = await makeAssistant(user);
  const from = reef.logs.length;
  const ask = (token: string, requestId: string, path = `/api/assistants/${id}`) =>
    fetch(reef.url + path, { headers: { authorization: `Bearer ${token}`, "x-request-id": requestId } });
  await ask(user.token, "request-good");
  await ask("no-token", "request-stranger");
  await ask(user.token, "request-query", `/api/assistants?email=${user.email}&token=${user.token}`);
  await reef.sql`alter table assistants rename to assistants_away`;
  const broken = await ask(user.token, "request-broken");
  await reef.sql`alter table assistants_away rename to assistants`;
  expect(broken.status).toBe(500);
  const of = (requestId: string) =>
    lines(from)
      .filter(({ request_id }) => request_id === requestId)
      .map(({ level, msg, user_id, status }) => [level, msg, user_id, status]);
  expect(of("request-good")).toEqual([["info", "request", user.id, 200]]);
  expect(of("request-stranger")).toEqual([["info", "request", undefined, 401]]);
  expect(of("request-broken")).toEqual([
    ["error", "request failed", user.id, undefined],
    ["info", "request", user.id, 500],
  ]);
  // Each name once in a line: a reader of JSON keeps only one of two.
  for (const line of reef.logs.slice(from)) expect(line.match(/"user_id":/g)?.length ?? 1).toBe(1);
  expectDiscreet(user);
});

test("what a service says within a request names the request", async () => {
  const user = await makeUser(reef);
  const from = reef.logs.length;
  const export_ = await fetch(`${reef.url}/api/user/export`, {
    headers: { authorization: `Bearer ${user.token}`, "x-request-id": "request-export" },
  });
  await reef.sql`alter table exports rename to exports_away`;
  await export_.arrayBuffer().catch(() => undefined);
  await until("it is said", () => lines(from).some(({ msg }) => String(msg).startsWith("an export")));
  await reef.sql`alter table exports_away rename to exports`;
  const said = lines(from).find(({ msg }) => String(msg).startsWith("an export"));
  expect([said.request_id, said.user_id]).toEqual(["request-export", user.id]);
});
