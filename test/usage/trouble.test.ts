import { afterEach, expect, test } from "bun:test";
import { getUsage, type Amounts } from "../../src/db/usage.ts";
import type { Deps } from "../../src/deps.ts";
import { newId } from "../../src/lib/ids.ts";
import { findCheapRefusal, isRefused, reserveUsage, settleUsage, type Refused } from "../../src/services/usage.ts";
import { makeAssistant, makeUser, type TestUser } from "../factories.ts";
import { startProcess, startTestReef, type TestReef } from "../harness.ts";
import { openRedis } from "../ownRedis.ts";

/** All kinds at once, hundreds of requests in two processes, while Redis is emptied, restarted and taken away. */

const PATIENCE_MS = 60_000;
const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

interface Town {
  reef: TestReef;
  processes: { url: string; deps: Deps }[];
  user: TestUser;
}

async function openTown(overrides: Record<string, string>): Promise<Town> {
  const reef = await startTestReef(overrides);
  closers.push(() => reef.stop());
  const second = await startProcess(reef.env);
  closers.push(() => second.stop());
  return { reef, processes: [reef, second], user: await makeUser(reef) };
}

/** Asks as the voice routes do. */
async function spend({ deps }: { deps: Deps }, userId: string, amounts: Partial<Amounts>): Promise<string | Refused> {
  const cheap = await findCheapRefusal(deps, userId, amounts);
  if (cheap) return cheap;
  const key = newId();
  const outcome = await deps.sql.begin(async (sql) => {
    const usage = await getUsage(sql, userId);
    return reserveUsage(deps, sql, { userId, key, usage, amounts, expiresInMs: 60_000 });
  });
  return isRefused(outcome) ? outcome : key;
}

/** How many of so many requests must be granted when each takes so much. */
const REQUESTS: { amounts: Partial<Amounts>; asked: number; granted: number }[] = [
  // 120 seconds heard, 7 at a time; 5,000 characters in 120 spoken seconds, 331 in 5 at a time: the characters end first.
  { amounts: { voiceInputSeconds: 7 }, asked: 200, granted: 17 },
  { amounts: { voiceOutputSeconds: 5, ttsCharacters: 331 }, asked: 200, granted: 15 },
];
const TEXTS = 200;

for (const [name, troubled] of [
  ["Redis is well", false],
  ["Redis is emptied, restarted and taken away all the time", true],
] as const)
  test(
    `hundreds of requests of all kinds while ${name}: each kind gives exactly what it has`,
    async () => {
      const redis = await openRedis();
      closers.push(() => redis.close());
      const town = await openTown({ REDIS_URL: redis.url });
      const { reef, processes, user } = town;
      const assistant = await makeAssistant(user);
      const trouble = troubled ? redis.makeTrouble() : null;
      const asking = REQUESTS.map(({ amounts, asked }) =>
        Promise.all(Array.from({ length: asked }, (_, n) => spend(processes[n % 2]!, user.id, amounts))),
      );
      const texts = Array.from({ length: TEXTS }, async (_, n) => {
        const response = await fetch(`${processes[n % 2]!.url}/api/assistants/${assistant.id}/messages`, {
          method: "POST",
          headers: { authorization: `Bearer ${user.token}`, "content-type": "application/json" },
          body: JSON.stringify({ content: "x", client_id: newId() }),
        });
        await response.text();
        return response.status;
      });
      const outcomes = await Promise.all(asking);
      const statuses = await Promise.all(texts);
      if (trouble) expect(Object.values(await trouble.end()).every((times) => times > 0)).toBe(true);
      for (const [index, { granted }] of REQUESTS.entries())
        expect(outcomes[index]!.filter((outcome) => typeof outcome === "string").length).toBe(granted);
      expect(statuses.filter((status) => status === 202).length).toBe(50);
      expect(statuses.filter((status) => status !== 202 && status !== 429)).toEqual([]);
      await expectLedger(reef, user);
    },
    2 * PATIENCE_MS,
  );

test("what comes back is there at once for whoever asks next, at whatever process", async () => {
  const { reef, processes, user } = await openTown({});
  const nothing = { voiceInputSeconds: 0, ttsCharacters: 0 };
  for (let round = 0; round < 20; round++) {
    const [one, other] = round % 2 === 0 ? processes : processes.toReversed();
    const settle = (key: string, actual: Partial<Amounts>) =>
      one!.deps.sql.begin((sql) => settleUsage(one!.deps, sql, { userId: user.id, key, status: "committed", actual }));
    const asking = Array.from({ length: 6 }, () =>
      spend(one!, user.id, { voiceInputSeconds: 40, ttsCharacters: 1_500 }),
    );
    const keys = (await Promise.all(asking)).filter((outcome) => typeof outcome === "string");
    expect(keys.length).toBe(3);
    // Both processes know of a full day; then less was used of one, and nothing of another.
    expect(typeof (await spend(other!, user.id, { voiceInputSeconds: 1 }))).toBe("object");
    await settle(keys[0]!, { voiceInputSeconds: 25, ttsCharacters: 800 });
    await settle(keys[1]!, nothing);
    const again = await spend(other!, user.id, { voiceInputSeconds: 55, ttsCharacters: 2_200 });
    if (typeof again !== "string") throw new Error(`refused: ${JSON.stringify(again)}`);
    await settle(again, nothing);
    await settle(keys[2]!, nothing);
    // What was used of the first, for the next round.
    await reef.sql`delete from usage_logs where user_id = ${user.id}`;
    await reef.sql`update daily_usage set voice_input_seconds = 0, tts_characters = 0, version = version + 1
      where user_id = ${user.id}`;
  }
});

/** For every kind the day's counter is the sum of its ledger. */
async function expectLedger({ sql }: TestReef, user: TestUser): Promise<void> {
  const [row] = await sql`
    select d.text_messages, d.voice_input_seconds, d.voice_output_seconds, d.tts_characters, l.*
    from daily_usage d, lateral (select
      coalesce(sum(amount) filter (where kind = 'text_messages'), 0)::int as texts,
      coalesce(sum(amount) filter (where kind = 'voice_input_seconds'), 0)::int as heard,
      coalesce(sum(amount) filter (where kind = 'voice_output_seconds'), 0)::int as spoken,
      coalesce(sum(amount) filter (where kind = 'tts_characters'), 0)::int as characters
      from usage_logs l where l.user_id = d.user_id and l.date = d.date and l.status <> 'released') l
    where d.user_id = ${user.id}`;
  const { textMessages, voiceInputSeconds, voiceOutputSeconds, ttsCharacters, ...ledger } = row!;
  expect(ledger).toEqual({
    texts: textMessages,
    heard: voiceInputSeconds,
    spoken: voiceOutputSeconds,
    characters: ttsCharacters,
  });
  expect([voiceInputSeconds, textMessages]).toEqual([119, 50]);
}
