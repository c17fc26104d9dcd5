import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Sql } from "../../src/db/connect.ts";
import { newId } from "../../src/lib/ids.ts";
import { signAccessToken } from "../../src/services/accessTokens.ts";
import type { ChatRequest } from "../../test/fakes/openai.ts";
import { messageText, personText } from "../../test/fakes/projectContext.ts";
import { openChatLink } from "./chatLink.ts";
import type { Scratch } from "./drillStack.ts";
import { StartError } from "./process.ts";

const ANSWER = "The drill was heard.";
const WITHIN_MS = 120_000;
/** So many of the last things said are looked for: somebody may have begun anew since. */
const SAID = 5;

/** What a restored assistant knew; null where there was nothing to know. */
export interface Talk {
  assistantId: string;
  answered: boolean;
  /** What was said last is in what the model was given. */
  history: boolean | null;
  /** Its MEMORY.md is. */
  memory: boolean | null;
}

type Known = { id: string; agentId: string; userId: string; said: string[] };

/** Talks to the assistant that was used last, as its owner. Null: the backup has nobody who could be talked to. */
export async function talkToRestored(scratch: Scratch, sql: Sql, url: string): Promise<Talk | null> {
  const known = await findLastUsed(sql, scratch.config.GATEWAY_ID);
  if (!known) return null;
  // Whoever has used up the day is refused; this is a copy, and nobody's day.
  await sql`update plan_limits set text_messages = 1000000`;
  const sessionId = newId();
  await sql`
    insert into refresh_tokens (id, user_id, token_hash, expires_at)
    values (${sessionId}, ${known.userId}, ${Buffer.from(sessionId)}, now() + interval '1 hour')`;
  const token = await signAccessToken(scratch.config, { userId: known.userId, sessionId });
  const marker = `drill ${crypto.randomUUID()}`;
  let asked: ChatRequest | undefined;
  scratch.model.answer = function* (request) {
    if (request.messages.some((message) => messageText(message).includes(marker))) asked = request;
    yield { text: ANSWER };
  };
  const answer = await sayOnce({ url, agentId: known.agentId, token, text: `Do you remember me? (${marker})` });
  if (!asked) throw new StartError("The restored assistant's model was not asked");
  return { assistantId: known.id, answered: answer.includes(ANSWER), ...compare(scratch, known, asked) };
}

function compare(scratch: Scratch, known: Known, asked: ChatRequest): Pick<Talk, "history" | "memory"> {
  const heard = asked.messages.filter(({ role }) => role === "user").map((message) => personText(messageText(message)));
  const wanted = known.said.map((text) => personText(text));
  const file = join(scratch.gatewayDir, "workspaces", known.agentId, "MEMORY.md");
  const system = asked.messages.filter(({ role }) => role === "system" || role === "developer").map(messageText);
  return {
    history: wanted.length === 0 ? null : wanted.some((text) => heard.some((one) => one.includes(text))),
    memory: isShown(system.join("\n"), readFileSync(file, "utf8")),
  };
}

/** The gateway cuts the middle out of a note of more than 20,000 characters (an assistant may keep 100,000); the beginning stays. */
const SHOWN = { whole: 10_000, beginning: 2_000 };

/** Whether a prompt has a note; null: it is empty. What the note's own lines look like is the assistant's affair. */
export function isShown(prompt: string, note: string): boolean | null {
  const text = note.trim();
  if (text === "") return null;
  return prompt.includes(text.length > SHOWN.whole ? text.slice(0, SHOWN.beginning) : text);
}

async function findLastUsed(sql: Sql, gatewayId: string): Promise<Known | null> {
  const [row] = await sql<Known[]>`
    select a.id, a.agent_id, a.user_id, array(
      select m.content from messages m join turns t on t.id = m.turn_id
      where m.assistant_id = a.id and m.role = 'user' and t.status = 'done' order by m.seq desc limit ${SAID}) as said
    from assistants a join users u on u.id = a.user_id
    where a.status = 'active' and u.status = 'active' and a.gateway_id = ${gatewayId}
    order by a.message_count > 0 desc, a.last_used_at desc nulls last limit 1`;
  return row ?? null;
}

async function sayOnce(to: { url: string; agentId: string; token: string; text: string }): Promise<string> {
  let printed = "";
  const chat = await openChatLink({
    url: `${to.url.replace("http", "ws")}/ws/chat?agent_id=${to.agentId}`,
    token: to.token,
    renew: async () => to.token,
    giveUpMs: WITHIN_MS,
    print: (text) => (printed += text),
    tell: () => undefined,
  });
  const late = Bun.sleep(WITHIN_MS).then(() => {
    throw new StartError(`The restored assistant did not answer within ${WITHIN_MS / 1000} s`);
  });
  try {
    await Promise.race([chat.say(to.text), chat.lost, late]);
    return printed;
  } finally {
    chat.close();
  }
}
