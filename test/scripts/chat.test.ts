import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { openChatLink } from "../../scripts/services/chatLink.ts";
import { stock } from "../billing/storefront.ts";
import { makeAssistant, makeUser } from "../factories.ts";
import { startFakeStripe } from "../fakes/stripe.ts";
import { startProcess, startTestReef, type TestReef } from "../harness.ts";

const root = resolve(import.meta.dir, "../..");
const folder = mkdtempSync(join(tmpdir(), "reef-chat-"));
let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef()));
afterAll(async () => {
  await reef.stop();
  rmSync(folder, { recursive: true, force: true });
});

async function chat(env: Record<string, string>, ...given: (string | { stdin: string })[]) {
  const args = given.filter((one) => typeof one === "string");
  const typed = given.find((one) => typeof one === "object");
  const child = Bun.spawn([process.execPath, "--no-env-file", "scripts/chat.ts", ...args], {
    cwd: root,
    env: { PATH: process.env["PATH"] ?? "", REEF_DATA_DIR: folder, ...env },
    stdout: "pipe",
    stderr: "pipe",
    stdin: typed ? Buffer.from(typed.stdin) : "ignore",
  });
  const [out, err] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  return { code: await child.exited, out, err };
}

async function link(at: TestReef, giveUpMs: number) {
  const user = await makeUser(at);
  const assistant = await makeAssistant(user);
  const said = { printed: "", told: "" };
  const opened = await openChatLink({
    url: `${at.url.replace("http", "ws")}/ws/chat?agent_id=${assistant.agent_id}`,
    token: user.token,
    renew: async () => user.token,
    giveUpMs,
    print: (text) => (said.printed += text),
    tell: (note) => (said.told += note),
  });
  return { link: opened, said };
}

test("says one thing where HOST and PORT say, prints the answer, ends; stays signed in", async () => {
  const env = { HOST: "127.0.0.1", PORT: new URL(reef.url).port };
  const account = ["--email", `${crypto.randomUUID()}@example.org`, "--password", "long enough"];
  const first = await chat(env, ...account, "--say", "hello");
  expect([first.code, first.out]).toEqual([0, "Echo: hello\n"]);
  const second = await chat(env, "--say", "again");
  expect([second.code, second.out]).toEqual([0, "Echo: again\n"]);
});

test("/plan says how things stand and where a plan is bought", async () => {
  const stripe = await startFakeStripe();
  const selling = await startTestReef({ STRIPE_SECRET_KEY: stripe.secretKey, STRIPE_API_BASE: stripe.apiBase });
  try {
    const account = ["--email", `${crypto.randomUUID()}@example.org`, "--password", "long enough"];
    const ask = async (lines: string) =>
      (await chat({ REEF_URL: selling.url }, ...account, { stdin: lines })).out.trim().split("\n");
    expect(await ask("/plan\n/plan pro\n")).toEqual([
      "You have the plan free.",
      "Nothing is sold here.",
      "Nothing is sold here.",
    ]);
    await stock(selling);
    const [has, offers, link, wrong] = await ask("/plan\n/plan pro yearly\n/plan gold\n");
    expect(has).toBe("You have the plan free.");
    expect(offers).toBe(
      "To change: /plan pro (6.99 USD a month, 69.99 yearly), /plan premium (12.99 USD a month, 129.99 yearly)",
    );
    expect(link).toStartWith(`Open in a browser: ${stripe.url}/c/pay/`);
    expect(wrong).toContain("not valid");
  } finally {
    await selling.stop();
    await stripe.close();
  }
});

test("nobody there, and somebody else there, are one sentence each", async () => {
  const account = ["--email", "a@example.org", "--password", "long enough", "--say", "x"];
  const nobody = await chat({}, ...account, "--url", "http://127.0.0.1:1");
  expect([nobody.code, nobody.err]).toEqual([
    1,
    "chat: Reef does not answer at http://127.0.0.1:1: run npm start in another terminal.\n",
  ]);
  const other = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response("<h1>Hello</h1>") });
  const somebody = await chat({}, ...account, "--url", `http://127.0.0.1:${other.port}`);
  expect([somebody.code, somebody.err]).toEqual([
    1,
    `chat: What answers at http://127.0.0.1:${other.port} is not Reef: another program has this port.\n`,
  ]);
  await other.stop(true);
});

test("a message that is refused ends the waiting with its sentence", async () => {
  const { link: opened, said } = await link(reef, 1_000);
  await opened.say("x".repeat(32_001));
  expect(said.told).toContain("A message has at most 32,000 characters");
  opened.close();
});

test("what is said while Reef is away is said when it is back; who asks once gives up", async () => {
  const own = await startTestReef();
  const patient = await link(own, Number.POSITIVE_INFINITY);
  const hasty = await link(own, 1_000);
  await own.stopProcess();
  const answered = patient.link.say("are you there?");
  const unanswered = hasty.link.say("and you?");
  expect(patient.link.stop()).toBe(false);
  expect(await Promise.race([unanswered, hasty.link.lost]).catch((error: Error) => error.message)).toStartWith(
    "Reef does not answer any more",
  );
  const again = await startProcess({ ...own.env, PORT: new URL(own.url).port });
  await answered;
  expect(patient.said.printed).toBe("Echo: are you there?\n");
  expect(patient.said.told).toContain("(connected again)");
  patient.link.close();
  await again.stop();
  await own.stop();
});
