import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { createInterface } from "node:readline/promises";
import { parseArgs } from "node:util";
import type { ServerFrame } from "../src/protocol/chat.ts";
import type { AssistantBody } from "../src/protocol/api.ts";

const help = `Talks with your assistant in the terminal. Reef must be running (npm start).

  npm run chat                                  asks for e-mail address and password the first time
  npm run chat -- --email a@b.c --password …    signs up, or in when there is an account
  npm run chat -- --say "hello"                 says one thing, prints the answer, ends

  --url URL      where Reef is (REEF_URL, or http://127.0.0.1:PORT)
  --fresh        forget who was signed in here
In the chat: /quit leaves, Ctrl-C stops an answer, twice leaves. Lines can also be piped in.
You stay signed in by a token in <REEF_DATA_DIR or .data>/chat.json, readable by you only.`;

const { values: options } = readOptions();
const base = (options.url ?? process.env["REEF_URL"] ?? `http://127.0.0.1:${process.env["PORT"] ?? 3000}`).replace(
  /\/$/,
  "",
);
const memory = join(resolve(process.env["REEF_DATA_DIR"] ?? ".data"), "chat.json");

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

/** Calls the API; a failure has the server's own sentence. */
async function call<T>(
  method: string,
  path: string,
  body?: object,
  token?: string,
): Promise<{ status: number; body: T & { error?: string; code?: string } }> {
  const headers = { "content-type": "application/json", ...(token ? { authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(base + path, { method, headers, ...(body ? { body: JSON.stringify(body) } : {}) }).catch(
    () => fail(`Reef does not answer at ${base}: run npm start in another terminal.`),
  );
  return { status: response.status, body: (await response.json()) as T & { error?: string; code?: string } };
}

function remember(tokens: Tokens): Tokens {
  mkdirSync(dirname(memory), { recursive: true, mode: 0o700 });
  writeFileSync(memory, JSON.stringify({ url: base, refresh_token: tokens.refresh_token }), { mode: 0o600 });
  return tokens;
}

async function signInAgain(): Promise<Tokens | null> {
  if (options.fresh || options.email) return null;
  try {
    const kept = JSON.parse(readFileSync(memory, "utf8")) as { url: string; refresh_token: string };
    if (kept.url !== base) return null;
    const { status, body } = await call<Tokens>("POST", "/api/auth/refresh", { refresh_token: kept.refresh_token });
    return status === 200 ? remember(body) : null;
  } catch {
    return null;
  }
}

/** The kept session, else sign-up, else, where the address is known, login. */
async function signIn(): Promise<Tokens> {
  const again = await signInAgain();
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

const state = {
  lastSeq: null as number | null,
  turnId: "",
  printed: "",
  waiting: new Map<string, () => void>(),
  leaving: false,
};
let socket: WebSocket | undefined;

/** Opens the socket, and again after a loss, from the last message that was seen. */
async function connect(agentId: string, tokens: Tokens, opened: () => void): Promise<void> {
  const after = state.lastSeq === null ? "" : `&after_seq=${state.lastSeq}`;
  const ws = new WebSocket(`${base.replace(/^http/, "ws")}/ws/chat?agent_id=${agentId}${after}`, [
    "reef.v1",
    `bearer.${tokens.access_token}`,
  ]);
  socket = ws;
  ws.onmessage = (message) => {
    const frame = JSON.parse(String(message.data)) as ServerFrame;
    if (frame.type === "connected") {
      state.lastSeq ??= frame.last_seq;
      opened();
    } else show(frame);
  };
  ws.onclose = async (event) => {
    if (state.leaving) return;
    if (event.code === 1008 && !/expired/.test(event.reason)) fail(`the connection was refused: ${event.reason}`);
    await Bun.sleep(1000 + Math.random() * 1000);
    await connect(agentId, (await signInAgain()) ?? tokens, () => console.error("(connected again)"));
  };
}

function show(frame: ServerFrame): void {
  if (frame.type === "chunk") {
    if (frame.turn_id !== state.turnId) Object.assign(state, { turnId: frame.turn_id, printed: "" });
    const fresh = frame.content.slice(Math.max(0, state.printed.length - frame.offset));
    state.printed += fresh;
    process.stdout.write(fresh);
  } else if (frame.type === "message") {
    state.lastSeq = frame.seq;
    if (frame.role === "assistant") endAnswer(frame.turn_id, frame.content, frame.finish);
  } else if (frame.type === "state" && frame.state !== "awake")
    console.error(`(${frame.state}${frame.reason ? `: ${frame.reason}` : ""} …)`);
  else if (frame.type === "error" && !frame.turn_id) {
    console.error(`(${frame.message})`);
    if (frame.client_id) state.waiting.get(frame.client_id)?.();
  }
}

/** What the chunks have not shown, then who waited for it goes on. */
function endAnswer(turnId: string, content: string, finish: string): void {
  const shown = state.turnId === turnId ? state.printed : "";
  process.stdout.write(content.startsWith(shown) ? content.slice(shown.length) : `\n${content}`);
  process.stdout.write(finish === "stopped" ? " (stopped)\n" : "\n");
  state.printed = "";
  for (const done of state.waiting.values()) done();
}

/** Says one thing and waits for its answer. */
function say(content: string): Promise<void> {
  const clientId = crypto.randomUUID();
  return new Promise((done) => {
    state.waiting.set(clientId, () => {
      state.waiting.delete(clientId);
      done();
    });
    socket?.send(JSON.stringify({ type: "message", content, client_id: clientId }));
  });
}

function leave(): never {
  state.leaving = true;
  socket?.close();
  process.exit(0);
}

async function main(): Promise<void> {
  if (options.help) {
    console.log(help);
    process.exit(0);
  }
  const tokens = await signIn();
  const assistant = await findAssistant(tokens.access_token);
  await new Promise<void>((opened) => void connect(assistant.agent_id, tokens, opened));
  if (options.say !== undefined) {
    await say(options.say);
    leave();
  }
  // Opened only now: lines that are piped in before somebody reads them would be lost.
  const input = createInterface({ input: process.stdin, ...(process.stdin.isTTY ? { output: process.stdout } : {}) });
  const interrupt = () => (state.waiting.size > 0 ? socket?.send(JSON.stringify({ type: "stop" })) : leave());
  input.on("SIGINT", interrupt);
  process.on("SIGINT", interrupt);
  const prompt = () => {
    if (process.stdin.isTTY) process.stdout.write("> ");
  };
  if (process.stdin.isTTY) console.log(`You are talking with ${assistant.display_name}. /quit leaves.`);
  prompt();
  for await (const line of input) {
    if (line.trim() === "/quit") break;
    if (line.trim() !== "") await say(line.trim());
    prompt();
  }
  leave();
}

await main();
