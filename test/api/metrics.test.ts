import { afterAll, beforeAll, expect, test } from "bun:test";
import { connectDatabase } from "../../src/db/connect.ts";
import { createServer } from "../../src/server.ts";
import { ChatHub } from "../../src/services/chatHub.ts";
import { INVARIANTS } from "../../src/services/invariants.ts";
import { idle, isAnswer, makeAssistant, makeUser, openChat } from "../factories.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";

let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef({ INVARIANTS_EVERY_MS: "100" })));
afterAll(() => reef.stop());

const scrape = async (url = reef.url) => (await fetch(`${url}/metrics`)).text();

/** The value of a series; null when it is not there. */
function valueOf(text: string, series: string): number | null {
  const line = text.split("\n").find((candidate) => candidate.startsWith(`${series} `));
  return line === undefined ? null : Number(line.slice(series.length + 1));
}

test("the text is what Prometheus reads: help, type, then samples with a number each", async () => {
  const answer = await fetch(`${reef.url}/metrics`);
  expect([answer.status, answer.headers.get("content-type")]).toEqual([
    200,
    "text/plain; version=0.0.4; charset=utf-8",
  ]);
  const names = new Set<string>();
  for (const line of (await answer.text()).split("\n").filter((text) => text !== "")) {
    const declared = /^# (?:HELP|TYPE) (\w+) .+$/.exec(line);
    if (declared) names.add(declared[1]!);
    else {
      const sample = /^(\w+)(\{\w+="[^"]*"(?:,\w+="[^"]*")*\})? (-?[\d.e+-]+|\+Inf|NaN)$/.exec(line);
      expect([line, sample === null]).toEqual([line, false]);
      expect(names).toContain(sample![1]!.replace(/_(bucket|sum|count)$/, ""));
    }
  }
});

test("only for programs on this machine that come without a proxy; nothing is here for others", async () => {
  const { app } = createServer(reef.deps, new ChatHub(reef.deps), idle, () => false);
  const ask = async (ip: string | null, headers: Record<string, string> = {}) =>
    (await app.fetch(new Request("http://reef/metrics", { headers }), { ip })).status;
  for (const ip of ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
    expect([ip, await ask(ip)]).toEqual([ip, 200]);
  for (const ip of ["203.0.113.7", "10.0.0.1", "::ffff:10.0.0.1", "fe80::1", null])
    expect([ip, await ask(ip)]).toEqual([ip, 404]);
  for (const name of ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
    expect([name, await ask("127.0.0.1", { [name]: "127.0.0.1" })]).toEqual([name, 404]);
  const user = await makeUser(reef);
  const answer = await user.call("GET", "/metrics", undefined, { "x-forwarded-for": "203.0.113.7" });
  expect([answer.status, answer.body.code]).toEqual([404, "not_found"]);
});

test("numbers move: a conversation is counted, without a name of anybody", async () => {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  const { promise, resolve: open } = Promise.withResolvers<void>();
  reef.gateway.setAnswer(async function* (turn) {
    yield { text: "One, " };
    yield { wait: promise };
    if (turn.text === "fail") yield { error: "format" };
    yield { text: "two." };
  });
  const before = await scrape();
  const chat = await openChat(reef, user.token, assistant.agent_id);
  chat.say("hello");
  await chat.next("the first part", (frame) => frame.type === "chunk");
  const during = await until("it is seen as streaming", async () => {
    const text = await scrape();
    return valueOf(text, 'reef_turns{status="streaming"}') === 1 ? text : null;
  });
  expect(valueOf(during, "reef_turns_running_here")).toBe(1);
  expect(valueOf(during, "reef_chat_sockets")).toBe(1);
  expect(valueOf(during, "reef_gateway_connected")).toBe(1);
  expect(valueOf(during, "reef_database_up")).toBe(1);
  expect(valueOf(during, "reef_working_set_size")).toBe(30);
  expect(valueOf(during, 'reef_assistants{state="awake"}')).toBe(1);
  open();
  await chat.next("the answer", isAnswer);
  chat.say("fail");
  await chat.next("the failure", (frame) => frame.type === "error");
  const after = await scrape();
  const grown = (series: string) => (valueOf(after, series) ?? 0) - (valueOf(before, series) ?? 0);
  expect(grown('reef_turn_duration_seconds_count{status="done"}')).toBe(1);
  expect(grown('reef_turn_duration_seconds_count{status="failed"}')).toBe(1);
  expect(grown("reef_turn_first_text_seconds_count")).toBe(2);
  expect(grown("reef_chat_frames_received_total")).toBe(2);
  expect(grown('reef_chat_frames_sent_total{type="ack"}')).toBe(2);
  expect(grown('reef_chat_frames_sent_total{type="chunk"}')).toBeGreaterThanOrEqual(3);
  expect(grown('reef_reconcile_duration_seconds_count{result="ok"}')).toBeGreaterThanOrEqual(1);
  expect(valueOf(after, "process_resident_memory_bytes")).toBeGreaterThan(1_000_000);
  for (const name of [user.id, user.email, assistant.id, assistant.agent_id]) expect(after).not.toContain(name);
  chat.close();
  await until("the socket is gone", async () => valueOf(await scrape(), "reef_chat_sockets") === 0);
});

test("requests are counted by the pattern of their route; addresses of nobody are one", async () => {
  const user = await makeUser(reef);
  const { id } = await makeAssistant(user);
  const series = (labels: string) => `reef_http_request_duration_seconds_count{${labels}}`;
  const before = await scrape();
  await user.call("GET", `/api/assistants/${id}`);
  await user.call("GET", `/api/assistants/${crypto.randomUUID()}`);
  await fetch(`${reef.url}/api/assistants/${id}`);
  for (const path of ["/nothing", "/api/assistants/x/y/z", "/wp-login.php"]) await fetch(reef.url + path);
  const after = await scrape();
  const grown = (labels: string) => (valueOf(after, series(labels)) ?? 0) - (valueOf(before, series(labels)) ?? 0);
  for (const status of [200, 404, 401])
    expect(grown(`method="GET",route="/api/assistants/:id",status="${status}"`)).toBe(1);
  expect(grown('method="any",route="none",status="404"')).toBe(3);
  const routes = [...after.matchAll(/route="([^"]*)"/g)].map((match) => match[1]!);
  expect(routes.filter((route) => /wp-login|[0-9a-f]{8}-/.test(route))).toEqual([]);
});

test("violated invariants are counted by one process for all, and the count is that of the rows", async () => {
  const counts = (text: string) =>
    INVARIANTS.map(({ id }) => valueOf(text, `reef_invariant_violations{invariant="${id}"}`));
  // They rest for a multiple of the time that they took, which is long on a busy machine.
  const ms = 60_000;
  await until("all are counted", async () => counts(await scrape()).every((count) => count === 0), ms);
  const second = await startProcess(reef.env);
  try {
    const user = await makeUser(reef);
    const { id } = await makeAssistant(user);
    await reef.sql`update assistants set message_count = 5 where id = ${id}`;
    const series = 'reef_invariant_violations{invariant="seq_gapless"}';
    for (const { url } of [reef, second])
      await until("it is counted", async () => valueOf(await scrape(url), series) === 1, ms);
    expect(counts(await scrape(second.url)).filter((count) => count !== 0)).toEqual([1]);
    expect(reef.logs.concat(second.logs).some((line) => line.includes('"an invariant is violated"'))).toBe(true);
    await reef.sql`update assistants set message_count = 0 where id = ${id}`;
    for (const { url } of [reef, second])
      await until("it is over", async () => valueOf(await scrape(url), series) === 0, ms);
  } finally {
    await second.stop();
  }
}, 200_000);

test("without a database the scrape still answers, and does not show old numbers", async () => {
  const away = connectDatabase("postgres://nobody@127.0.0.1:1/x", { max: 1, name: "away" });
  const { app } = createServer({ ...reef.deps, sql: away }, new ChatHub(reef.deps), idle, () => false);
  const ask = async () => (await app.fetch(new Request("http://reef/metrics"), { ip: "127.0.0.1" })).text();
  const before = await scrape();
  const without = await ask();
  const again = await scrape();
  await away.end();
  const seen = (series: string) => [before, without, again].map((text) => valueOf(text, series));
  expect(seen("reef_database_up")).toEqual([1, 0, 1]);
  expect(seen("reef_queue_oldest_seconds")).toEqual([0, null, 0]);
  expect(seen('reef_turns{status="queued"}')).toEqual([0, null, 0]);
  expect(valueOf(without, "reef_event_loop_delay_max_seconds")).not.toBe(null);
});
