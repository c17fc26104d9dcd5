import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline/promises";
import { parseArgs } from "node:util";
import type { AssistantBody } from "../src/protocol/api.ts";
import { createCall } from "./services/chatApi.ts";
import { openChatLink, type ChatLink } from "./services/chatLink.ts";
import { answerPlan } from "./services/chatPlan.ts";
import { explain } from "./services/process.ts";
import { dataDir, env, loadEnvFile, urlOf } from "./services/settings.ts";

const help = `Talks with your assistant in the terminal. Reef must be running (npm start).

  npm run chat                                  asks for e-mail address and password the first time
  npm run chat -- --email a@b.c --password …    signs up, or in when there is an account
  npm run chat -- --say "hello"                 says one thing, prints the answer, ends

  --url URL      where Reef is (REEF_URL, or http://HOST:PORT; all may be in .env)
  --fresh        forget who was signed in here
In the chat: /plan shows your plan and how to change it, /quit leaves, Ctrl-C stops an answer, twice leaves. Lines can also be piped in.
You stay signed in by a token in <REEF_DATA_DIR or .data>/chat.json, readable by you only.`;

/** Two Ctrl-C within this time leave. */
const TWICE_MS = 2_000;
/** npm passes on a signal that the terminal has sent us already: two within this time are one. */
const SAME_SIGNAL_MS = 700;

const { values: options } = readOptions();
if (options.help) {
  console.log(help);
  process.exit(0);
}
try {
  loadEnvFile();
} catch (error) {
  fail(explain(error, ".env"));
}
const base = (options.url ?? env("REEF_URL") ?? urlOf(env("HOST") ?? "127.0.0.1", env("PORT") ?? 3000)).replace(
  /\/$/,
  "",
);
const memory = join(dataDir(), "chat.json");
const call = createCall(base);
let tokens: Tokens;

function readOptions() {
  try {
    return parseArgs({
      options: {
        email: { type: "string" },
        password: { type: "string" },
        say: { type: "string" },
        url: { type: "string" },
        fresh: { type: "boolean" },
        help: { type: "boolean", short: "h" },
      },
    });
  } catch (error) {
    return fail(`${error instanceof Error ? error.message : String(error)} See npm run chat -- --help.`);
  }
}

function fail(sentence: string): never {
  console.error(`chat: ${sentence}`);
  process.exit(1);
}

interface Tokens {
  access_token: string;
  refresh_token: string;
}

function remember(fresh: Tokens): Tokens {
  mkdirSync(dirname(memory), { recursive: true, mode: 0o700 });
  writeFileSync(memory, JSON.stringify({ url: base, refresh_token: fresh.refresh_token }), { mode: 0o600 });
  return fresh;
}

function kept(): string | null {
  try {
    const { url, refresh_token } = JSON.parse(readFileSync(memory, "utf8")) as { url: string; refresh_token: string };
    return url === base ? refresh_token : null;
  } catch {
    return null;
  }
}

async function refresh(refreshToken: string): Promise<Tokens | null> {
  const { status, body } = await call<Tokens>("POST", "/api/auth/refresh", { refresh_token: refreshToken });
  return status === 200 ? remember(body) : null;
}

/** A fresh access token for this session; the old one while there is none to be had. */
async function renew(): Promise<string> {
  // Another terminal may have gone on with the same session (whose id is in front): its newer token counts.
  const mine = tokens.refresh_token;
  const newer = kept();
  const current = newer?.slice(0, 24) === mine.slice(0, 24) ? newer : mine;
  tokens = (await refresh(current).catch(() => null)) ?? tokens;
  return tokens.access_token;
}

/** The kept session, else sign-up, else, where the address is known, login. */
async function signIn(): Promise<Tokens> {
  const known = options.fresh || options.email ? null : kept();
  const again = known === null ? null : await refresh(known);
  if (again) return again;
  const email = options.email ?? (await ask("E-mail address: "));
  const password = options.password ?? (await ask("Password (8 characters or more): "));
  const timezone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const signedUp = await call<Tokens>("POST", "/api/auth/signup", { email, password, timezone });
  if (signedUp.status === 201) return remember(signedUp.body);
  if (signedUp.status !== 202 && signedUp.body.code !== "email_taken") fail(signedUp.body.error ?? "sign-up failed");
  const loggedIn = await call<Tokens>("POST", "/api/auth/login", { email, password, device_name: "terminal" });
  if (loggedIn.status !== 200) fail(loggedIn.body.error ?? "login failed");
  return remember(loggedIn.body);
}

async function ask(question: string): Promise<string> {
  if (!process.stdin.isTTY) fail("give --email and --password: there is no terminal to ask at.");
  const asker = createInterface({ input: process.stdin, output: process.stdout });
  const answer = await asker.question(question);
  asker.close();
  return answer.trim();
}

async function findAssistant(token: string): Promise<AssistantBody> {
  const list = await call<AssistantBody[]>("GET", "/api/assistants", undefined, token);
  if (list.status !== 200) fail(list.body.error ?? "the assistants can't be read");
  if (list.body[0]) return list.body[0];
  const created = await call<AssistantBody>("POST", "/api/assistants", {}, token);
  if (created.status !== 201) fail(created.body.error ?? "no assistant could be created");
  return created.body;
}

function leave(link: ChatLink): never {
  link.close();
  process.exit(0);
}

/** Reads lines until the end or /quit. */
async function talk(link: ChatLink): Promise<void> {
  // Opened only now: lines that are piped in before somebody reads them would be lost.
  const input = createInterface({ input: process.stdin, ...(process.stdin.isTTY ? { output: process.stdout } : {}) });
  let interruptedAt = -Infinity;
  const interrupt = (sameWithinMs: number) => {
    const sinceMs = performance.now() - interruptedAt;
    if (sinceMs < sameWithinMs) return;
    interruptedAt = performance.now();
    if (sinceMs < TWICE_MS || !link.stop()) leave(link);
  };
  input.on("SIGINT", () => interrupt(0));
  process.on("SIGINT", () => interrupt(SAME_SIGNAL_MS));
  const prompt = () => {
    if (process.stdin.isTTY) process.stdout.write("> ");
  };
  prompt();
  for await (const line of input) {
    const text = line.trim();
    if (text === "/quit") break;
    const [command, ...words] = text.split(/\s+/);
    if (command === "/plan") console.log(await answerPlan(call, await renew(), words));
    else if (text !== "") await link.say(text);
    prompt();
  }
}

async function main(): Promise<void> {
  tokens = await signIn();
  const assistant = await findAssistant(tokens.access_token);
  const link = await openChatLink({
    url: `${base.replace(/^http/, "ws")}/ws/chat?agent_id=${assistant.agent_id}`,
    token: tokens.access_token,
    renew,
    // Somebody who asks once is not there to see that nobody comes.
    giveUpMs: options.say === undefined ? Number.POSITIVE_INFINITY : 30_000,
    print: (text) => process.stdout.write(text),
    tell: (note) => console.error(note),
  });
  if (options.say === undefined && process.stdin.isTTY)
    console.log(`You are talking with ${assistant.display_name}. /plan is about your plan, /quit leaves.`);
  await Promise.race([options.say === undefined ? talk(link) : link.say(options.say), link.lost]);
  leave(link);
}

await main().catch((error: unknown) => fail(explain(error, memory)));
