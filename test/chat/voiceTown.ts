import { expect } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { newId } from "../../src/lib/ids.ts";
import { makeAssistant, makeUser, openChat, type Chat, type Json, type TestUser } from "../factories.ts";
import { createFakeAudio } from "../fakes/openaiAudio.ts";
import { startFakeOpenAi, type FakeOpenAi } from "../fakes/openai.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";

export const KEY = "sk-a-key-that-nobody-may-see";
const FOLDER = join(import.meta.dir, "../fixtures/voice");
const listed = JSON.parse(readFileSync(join(FOLDER, "manifest.json"), "utf8")) as Record<
  string,
  { format: string; seconds: number; text: string }
>;

/** A recording, and what the provider hears in it. */
export interface Recording {
  bytes: Buffer;
  format: string;
  seconds: number;
  text: string;
}
export const recording = (name: string): Recording => ({ ...listed[name]!, bytes: readFileSync(join(FOLDER, name)) });
export const WEATHER = recording("speech.wav");
export const JOKE = recording("speech.m4a");

/** A Reef whose provider hears and speaks as a test says. */
export interface VoiceTown {
  reef: TestReef;
  provider: FakeOpenAi;
  close(): Promise<void>;
}

export async function startVoiceTown(overrides: Record<string, string> = {}): Promise<VoiceTown> {
  const provider = await startFakeOpenAi({ apiKey: KEY });
  const reef = await startTestReef({ OPENAI_BASE_URL: provider.url, OPENAI_API_KEY: KEY, ...overrides });
  const close = async () => {
    await reef.stop();
    await provider.close();
  };
  return { reef, provider, close };
}

/** Forgets what the last test's provider did. */
export function resetProvider({ provider }: VoiceTown): void {
  Object.assign(provider.audio, createFakeAudio());
}

export interface Person {
  user: TestUser;
  assistant: Json;
  chat: Chat;
}

/** Somebody whose assistant is awake, with a device. */
export async function makePerson(reef: TestReef, api: { url: string } = reef): Promise<Person> {
  const user = await makeUser(reef);
  const assistant = await makeAssistant(user);
  await until("it is awake", async () => {
    const rows = await reef.sql`select 1 from assistants where id = ${assistant.id} and state = 'awake'`;
    return rows.length === 1;
  });
  return { user, assistant, chat: await openChat(api, user.token, assistant.agent_id) };
}

/** Speaks into a device: the sound in the frame itself. */
export function speakTo(chat: Chat, { bytes }: { bytes: Buffer }, more: object = {}, clientId = newId()): string {
  chat.send({ type: "voice", client_id: clientId, audio: bytes.toString("base64"), ...more });
  return clientId;
}

/** The same with the sound in a binary frame after it. */
export function speakInBinary(chat: Chat, { bytes }: { bytes: Buffer }, more: object = {}, clientId = newId()): string {
  chat.send({ type: "voice", client_id: clientId, ...more });
  chat.send(new Uint8Array(bytes));
  return clientId;
}

/** What a person has used today, by the counters and by the ledger, which must agree. */
export async function usedBy(reef: TestReef, { id }: { id: string }): Promise<Record<string, number>> {
  const [row] = await reef.sql`
    select coalesce(sum(text_messages), 0)::int as text, coalesce(sum(voice_input_seconds), 0)::int as heard,
      coalesce(sum(voice_output_seconds), 0)::int as spoken, coalesce(sum(tts_characters), 0)::int as characters
    from daily_usage where user_id = ${id}`;
  const ledger = await reef.sql`
    select kind, sum(amount)::int as amount from usage_logs where user_id = ${id} and status in ('reserved', 'committed')
    group by kind`;
  const amounts = new Map(ledger.map((entry) => [entry["kind"], entry["amount"]]));
  const used = { ...row } as Record<string, number>;
  expect(used).toEqual({
    text: amounts.get("text_messages") ?? 0,
    heard: amounts.get("voice_input_seconds") ?? 0,
    spoken: amounts.get("voice_output_seconds") ?? 0,
    characters: amounts.get("tts_characters") ?? 0,
  });
  return used;
}

/** Waits until nothing of a person's is reserved any more. */
export async function settled(reef: TestReef, { id }: { id: string }): Promise<void> {
  await until("everything is settled", async () => {
    const rows = await reef.sql`select 1 from usage_logs where user_id = ${id} and status = 'reserved'`;
    return rows.length === 0;
  });
}

/** Leaves so much of a person's day; the ledger tells of the rest as well. */
export async function leave(
  reef: TestReef,
  { id }: { id: string },
  left: Partial<Record<"text_messages" | "voice_input_seconds" | "voice_output_seconds" | "tts_characters", number>>,
): Promise<void> {
  for (const [kind, amount] of Object.entries(left)) {
    const column = reef.sql(kind);
    await reef.sql`
      with day as (
        select u.id, day.date, p.plan, p.${column} as "limit" from users u cross join lateral day_of(u, now()) day
        join plan_limits p on p.plan = plan_of(u.id) where u.id = ${id}
      ), counted as (
        insert into daily_usage (user_id, date, ${column}) select id, date, "limit" - ${amount} from day
        on conflict (user_id, date) do update set version = daily_usage.version + 1, ${column} = excluded.${column}
      )
      insert into usage_logs (id, user_id, date, kind, amount, limit_then, plan, idempotency_key, status, settled_at)
      select ${newId()}, id, date, ${kind}, "limit" - ${amount}, "limit", plan, ${newId()}, 'committed', now() from day`;
  }
}

export const history = async ({ user, assistant }: Person): Promise<[string, string, string][]> =>
  (await user.call("GET", `/api/assistants/${assistant.id}/messages?after_seq=0&limit=200`)).body.items.map(
    (message: Json) => [message.role, message.content, message.finish],
  );

export const isAck = (frame: Json) => frame.type === "ack";
export const isAudio = (frame: Json) => frame.type === "audio";
export const isEnd = (frame: Json) => frame.type === "audio_end";
export const isError = (frame: Json) => frame.type === "error";

/** Nothing of what was said, by whom or with which key, is in a log. */
export function expectNothingLogged(logs: string[], secrets: string[]): void {
  for (const secret of [KEY, ...secrets])
    expect([secret, logs.filter((line) => line.includes(secret))]).toEqual([secret, []]);
}
