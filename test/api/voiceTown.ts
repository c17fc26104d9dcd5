import { expect } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { checkInvariants } from "../../src/services/invariants.ts";
import { createFakeAudio } from "../fakes/openaiAudio.ts";
import { startFakeOpenAi, type FakeOpenAi } from "../fakes/openai.ts";
import type { Answer, TestUser } from "../factories.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";

export const KEY = "sk-that-nobody-may-see";
const FOLDER = join(import.meta.dir, "../fixtures/voice");

export type Sent = NonNullable<RequestInit["body"]>;

interface Fixture {
  sha256: string;
  format: string;
  seconds: number;
  text: string;
}

/** What is said in each recording. */
export const FIXTURES = JSON.parse(readFileSync(join(FOLDER, "manifest.json"), "utf8")) as Record<string, Fixture>;
export const fixture = (name: string) => new Uint8Array(readFileSync(join(FOLDER, name)));

/** A Reef whose voice is the double's. */
export interface VoiceTown {
  reef: TestReef;
  openai: FakeOpenAi;
  /** The double hears and speaks as at first. */
  reset(): void;
  stop(): Promise<void>;
}

export async function startVoiceTown(overrides: Record<string, string> = {}): Promise<VoiceTown> {
  const openai = await startFakeOpenAi({ apiKey: KEY });
  const reef = await startTestReef({ OPENAI_API_KEY: KEY, OPENAI_BASE_URL: openai.url, ...overrides });
  return {
    reef,
    openai,
    reset: () => void Object.assign(openai.audio, createFakeAudio()),
    stop: async () => {
      await reef.stop();
      await openai.close();
    },
  };
}

/** A request of the user's to /api/voice, whatever its body is. */
export function send(
  { url }: { url: string },
  user: TestUser,
  path: "transcribe" | "speak",
  body: Sent,
  headers: Record<string, string> = {},
  signal: AbortSignal | null = null,
): Promise<Response> {
  return fetch(`${url}/api/voice/${path}`, {
    method: "POST",
    headers: { authorization: `Bearer ${user.token}`, ...headers },
    body,
    signal,
  });
}

export async function readAnswer(response: Response): Promise<Answer> {
  return { status: response.status, body: await response.json(), headers: response.headers };
}

/** A bare recording sent for what is said in it. */
export async function hearBytes(
  reef: { url: string },
  user: TestUser,
  bytes: Uint8Array,
  headers: Record<string, string> = {},
): Promise<Answer> {
  const audio = bytes as Uint8Array<ArrayBuffer>;
  return readAnswer(await send(reef, user, "transcribe", audio, { "content-type": "audio/webm", ...headers }));
}

/** The day's totals of voice, and each reservation as it stands, oldest first. */
export async function dayOf({ sql }: TestReef, { id }: TestUser) {
  const [used] = await sql<{ input: number; output: number; characters: number }[]>`
    select voice_input_seconds as input, voice_output_seconds as output, tts_characters as characters
    from daily_usage where user_id = ${id}`;
  const ledger = await sql<{ kind: string; status: string; amount: number }[]>`
    select kind, status, amount from usage_logs where user_id = ${id} and kind <> 'text_messages' order by created_at, kind`;
  return {
    used: { input: 0, output: 0, characters: 0, ...used },
    ledger: ledger.map(({ kind, status, amount }) => `${kind} ${status} ${amount}`),
  };
}

/** Nothing is reserved, and nothing was charged. */
export async function expectFree(reef: TestReef, user: TestUser): Promise<void> {
  const { used, ledger } = await dayOf(reef, user);
  expect({ used, held: ledger.filter((row) => !row.includes(" released ")) }).toEqual({
    used: { input: 0, output: 0, characters: 0 },
    held: [],
  });
}

/** What the user has cost, in micro-USD. */
export async function costOf({ sql }: TestReef, { id }: TestUser): Promise<number> {
  const [row] = await sql<{ cost: number }[]>`
    select coalesce(sum(cost_micro_usd), 0)::int as cost from usage_logs where user_id = ${id}`;
  return row!.cost;
}

export async function usePlan({ sql }: TestReef, { id }: TestUser, plan: "pro" | "premium" | "free"): Promise<void> {
  await sql`
    insert into subscriptions (user_id, plan, status) values (${id}, ${plan}, 'active')
    on conflict (user_id, source) do update set plan = excluded.plan, status = 'active'`;
}

/** So much of the day is used already. */
export async function useUp(
  { sql }: TestReef,
  { id }: TestUser,
  used: { input?: number; output?: number; characters?: number },
): Promise<void> {
  const { input = 0, output = 0, characters = 0 } = used;
  await sql.begin(async (tx) => {
    await tx`
      insert into daily_usage (user_id, date, voice_input_seconds, voice_output_seconds, tts_characters)
      values (${id}, (now() at time zone 'UTC')::date, ${input}, ${output}, ${characters})
      on conflict (user_id, date) do update set version = daily_usage.version + 1,
        voice_input_seconds = daily_usage.voice_input_seconds + excluded.voice_input_seconds,
        voice_output_seconds = daily_usage.voice_output_seconds + excluded.voice_output_seconds,
        tts_characters = daily_usage.tts_characters + excluded.tts_characters`;
    const rows = Object.entries({
      voice_input_seconds: input,
      voice_output_seconds: output,
      tts_characters: characters,
    });
    for (const [kind, amount] of rows.filter(([, n]) => n > 0))
      await tx`
        insert into usage_logs (id, user_id, date, kind, amount, limit_then, plan, idempotency_key, status, settled_at)
        values (${crypto.randomUUID()}, ${id}, (now() at time zone 'UTC')::date, ${kind}, ${amount}, 1000000, 'free',
          ${crypto.randomUUID()}, 'committed', now())`;
  });
}

/** Days whose totals of voice are not the sum of their reserved and committed reservations, or above their limit. */
async function wrongSums({ sql }: TestReef): Promise<object[]> {
  const rows = await sql`
    select d.user_id, d.date, k.kind, k.used, coalesce(l.sum, 0) as sum from daily_usage d
    cross join lateral (values ('voice_input_seconds', voice_input_seconds),
      ('voice_output_seconds', voice_output_seconds), ('tts_characters', tts_characters)) k(kind, used)
    left join (select user_id, date, kind, sum(amount) as sum, max(limit_then) as most from usage_logs
      where status in ('reserved', 'committed') group by user_id, date, kind) l
      on l.user_id = d.user_id and l.date = d.date and l.kind = k.kind
    where k.used <> coalesce(l.sum, 0) or k.used > l.most`;
  return [...rows];
}

/** What `npm run verify` checks, and that nothing private was logged: to be called at a file's end. */
export async function expectSound({ reef, openai }: VoiceTown, secrets: string[] = []): Promise<void> {
  await until("no call runs any more", () => openai.audio.running === 0);
  const findings = await checkInvariants(reef.deps, { patienceMs: 20_000, timeoutMs: 10_000 });
  expect(findings.filter(({ status }) => status !== "ok")).toEqual([]);
  expect(await wrongSums(reef)).toEqual([]);
  const [left] = await reef.sql`select count(*)::int as n from usage_logs where status = 'reserved'`;
  expect(left!["n"]).toBe(0);
  const said = Object.values(FIXTURES).flatMap(({ text }) => (text === "" ? [] : [text]));
  const told = [KEY, ...said, ...secrets].filter((secret) => reef.logs.some((line) => line.includes(secret)));
  expect(told).toEqual([]);
  expect(reef.logs.filter((line) => line.includes("request failed"))).toEqual([]);
}
