import { afterAll, beforeAll, expect, test } from "bun:test";
import { connectDatabase, type Sql } from "../../src/db/connect.ts";
import { updateProfile } from "../../src/db/profiles.ts";
import { getUsage } from "../../src/db/usage.ts";
import { newId } from "../../src/lib/ids.ts";
import { isRefused, reserveUsage } from "../../src/services/usage.ts";
import { isAnswer, makeAssistant, makeUser, openChat } from "../factories.ts";
import { createTestDatabase, startTestReef, until } from "../harness.ts";
import { createRandom, type Random } from "../simulation/random.ts";

/** A person's days through changes of their time zone: at moments that the test chooses, and once in real time. */

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
/** From the first to the last place on earth to begin a date: 14 hours before its midnight in UTC to 12 hours after it. */
const FIRST_MS = -14 * HOUR_MS;
const LAST_MS = 12 * HOUR_MS;
const FAR = [
  "Pacific/Kiritimati",
  "Pacific/Pago_Pago",
  "Pacific/Apia",
  "Pacific/Honolulu",
  "Pacific/Niue",
  "Pacific/Chatham",
  "Pacific/Auckland",
  "America/Los_Angeles",
  "Etc/GMT+12",
  "Etc/GMT-14",
];
const CHANGING = [
  "Africa/Cairo",
  "America/Santiago",
  "Asia/Beirut",
  "America/Havana",
  "Atlantic/Azores",
  "America/Nuuk",
  "Europe/Berlin",
  "Australia/Lord_Howe",
];

let sql: Sql;
let zones: string[];
beforeAll(async () => {
  const url = new URL(await createTestDatabase());
  url.searchParams.set("search_path", "sim,public,pg_catalog");
  url.searchParams.set("sim.now", "2026-01-01");
  sql = connectDatabase(url.toString(), { max: 1, name: "days" });
  // The queries' own now() is the test's.
  await sql.unsafe(`create schema sim;
    create function sim.now() returns timestamptz language sql stable as
      $$ select current_setting('sim.now')::timestamptz $$;`);
  zones = (await sql<{ name: string }[]>`select name from pg_timezone_names where name !~ '^(posix|Factory)'`).map(
    ({ name }) => name,
  );
});
afterAll(() => sql.end());

/** A person, and what must be true of their days whatever zone they choose. */
class Traveller {
  readonly id = newId();
  nowMs: number;
  date = "";
  resetMs = 0;
  zone = "UTC";
  changedMs = -Infinity;
  /** Over how many dates the last move has gone: the day is called so much less than the calendar says. */
  private behind = 0;
  private keptUntilMs = -Infinity;
  private keptDate = "";
  /** How far the days' beginnings are from midnights in UTC: never more apart than the zones are. */
  private readonly drifts: number[] = [];

  constructor(readonly random: Random) {
    this.nowMs = Date.UTC(2026, random.int(0, 143), random.int(1, 28), random.int(0, 23), random.int(0, 59));
  }

  async begin(): Promise<void> {
    this.zone = this.pickZone();
    await sql`insert into users (id, email, timezone) values (${this.id}, ${`${this.id}@example.org`}, ${this.zone})`;
    const { date, resetAt } = await this.read();
    [this.date, this.resetMs] = [date, resetAt.getTime()];
  }

  /** At any moment before its end the running day is the same, and so is its end. */
  async stay(): Promise<void> {
    const { date, resetAt } = await this.read();
    expect([date, resetAt.getTime()]).toEqual([this.date, this.resetMs]);
    if (this.nowMs < this.keptUntilMs) return;
    const [row] = await sql<{ here: string; kept: string | null }[]>`select
      (${resetAt}::timestamptz - interval '1 microsecond') at time zone ${this.zone} as here`;
    // The last day of a place is called as its calendar says, but for the one case.
    expect(dayBefore(String(new Date(row!.here).toISOString().slice(0, 10)), this.behind)).toBe(date);
  }

  /** To another zone, unless that was done within the last 24 hours: then nothing changes. */
  async move(): Promise<void> {
    const zone = this.pickZone();
    await this.setNow();
    const changed = await updateProfile(sql, { userId: this.id, timezone: zone });
    if (zone !== this.zone && this.nowMs - this.changedMs < DAY_MS) return expect(changed).toBe(null);
    if (zone !== this.zone) {
      [this.zone, this.changedMs, this.keptUntilMs, this.keptDate] = [zone, this.nowMs, this.resetMs, this.date];
      const [row] = await sql<{ days: number }[]>`
        select (${new Date(this.resetMs)}::timestamptz at time zone ${zone})::date - ${this.keptDate}::date as days`;
      this.behind = Math.max(0, row!.days - 1);
      expect(this.behind).toBeLessThanOrEqual(1);
    }
    await this.stay();
  }

  /** The day ends exactly when it says so, and the next one is that of the next date. */
  async pass(): Promise<void> {
    this.nowMs = this.resetMs - 0.001;
    await this.stay();
    this.nowMs = this.resetMs;
    const { date, resetAt } = await this.read();
    expect(date).toBe(dayBefore(this.date, -1));
    expect(resetAt.getTime()).toBeGreaterThan(this.nowMs);
    const midnightMs = Date.parse(date);
    expect(this.nowMs - midnightMs).toBeGreaterThanOrEqual(FIRST_MS);
    expect(resetAt.getTime() - midnightMs - DAY_MS).toBeLessThanOrEqual(LAST_MS);
    this.drifts.push(this.nowMs - midnightMs);
    [this.date, this.resetMs] = [date, resetAt.getTime()];
  }

  /** Over any time as many days have begun as days have passed, give or take one and the two hours that zones are more apart. */
  judge(): void {
    expect(Math.max(...this.drifts) - Math.min(...this.drifts)).toBeLessThanOrEqual(LAST_MS - FIRST_MS);
  }

  private pickZone(): string {
    const { random } = this;
    return random.pick(random.pick([FAR, FAR, CHANGING, zones]));
  }

  private async read() {
    await this.setNow();
    return getUsage(sql, this.id);
  }

  private setNow() {
    const micros = Math.round(this.nowMs * 1000);
    return sql`select set_config('sim.now', (timestamptz 'epoch' + ${micros}::float8 * interval '1 microsecond')::text, false)`;
  }
}

const dayBefore = (date: string, days: number) => new Date(Date.parse(date) - days * DAY_MS).toISOString().slice(0, 10);

test("random changes of zone: no date twice, none left out, the running day keeps its end, days are counted as they pass", async () => {
  let moves = 0;
  for (let seed = 1; seed <= 60; seed++) {
    const random = createRandom("days", seed);
    const traveller = new Traveller(random);
    try {
      await traveller.begin();
      for (let day = 0; day < 20; day++) {
        for (let n = random.int(0, 2); n > 0; n--) {
          traveller.nowMs += Math.floor(random.next() * (traveller.resetMs - traveller.nowMs));
          await traveller.stay();
          if (!random.chance(0.6)) continue;
          await traveller.move();
          moves += 1;
        }
        await traveller.pass();
      }
      traveller.judge();
    } catch (error) {
      throw new Error(`seed ${seed}: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
  expect(moves).toBeGreaterThan(500);
});

test("to and fro over the date line costs and gives no day: from Honolulu to Kiritimati and back, ten times", async () => {
  const traveller = new Traveller(createRandom("line"));
  traveller.nowMs = Date.parse("2026-03-01T12:00:00Z");
  await traveller.begin();
  await sql`update users set timezone = 'Pacific/Honolulu' where id = ${traveller.id}`;
  const days: [string, string][] = [];
  for (let day = 0; day < 40; day++) {
    await sql`select set_config('sim.now', ${new Date(traveller.nowMs).toISOString()}, false)`;
    const { date, resetAt } = await getUsage(sql, traveller.id);
    days.push([date, resetAt.toISOString()]);
    const timezone = day % 4 < 2 ? "Pacific/Kiritimati" : "Pacific/Honolulu";
    if (day % 2 === 0) expect(await updateProfile(sql, { userId: traveller.id, timezone })).not.toBe(null);
    traveller.nowMs = resetAt.getTime();
  }
  const [first, last] = [days[0]!, days.at(-1)!];
  expect(Date.parse(last[0]) - Date.parse(first[0])).toBe(39 * DAY_MS);
  expect(Date.parse(last[1]) - Date.parse(first[1])).toBe(39 * DAY_MS);
});

test("midnight comes: who had used up their day sends on, over the same socket and HTTP; reset_at and Retry-After agree", async () => {
  const reef = await startTestReef();
  try {
    const user = await makeUser(reef);
    const assistant = await makeAssistant(user);
    const path = `/api/assistants/${assistant.id}/messages`;
    // A zone of its own, where a new day begins in three to four seconds.
    const midnight = new Date(Math.ceil(Date.now() / 1000) * 1000 + 3_000);
    const zone = `<X>+${midnight.toISOString().slice(11, 19)}`;
    await reef.sql`update users set timezone = ${zone} where id = ${user.id}`;
    const all = await reef.deps.sql.begin(async (tx) => {
      const input = { userId: user.id, key: newId(), amounts: { textMessages: 50 }, expiresInMs: null };
      return reserveUsage(reef.deps, tx, { ...input, usage: await getUsage(tx, user.id) });
    });
    expect(isRefused(all)).toBe(false);
    const chat = await openChat(reef, user.token, assistant.agent_id);
    const asked = Date.now();
    chat.say("too many");
    const refusal = await chat.next("the refusal", (frame) => frame.type === "error");
    const posted = await user.call("POST", path, { content: "too many, too", client_id: newId() });
    const answered = Date.now();
    const told = { reset_at: midnight.toISOString(), limit: 50, used: 50 };
    expect(refusal).toMatchObject({ ...told, code: "RATE_LIMITED" });
    expect([posted.status, posted.body]).toMatchObject([429, told]);
    for (const seconds of [refusal.retry_after, posted.body.retry_after, Number(posted.headers.get("retry-after"))]) {
      expect(seconds).toBeLessThanOrEqual(Math.ceil((midnight.getTime() - asked) / 1000));
      expect(seconds).toBeGreaterThanOrEqual(Math.max(1, Math.ceil((midnight.getTime() - answered) / 1000)));
    }
    const { body: before } = await user.call("GET", "/api/user/usage");
    await until("midnight has come", () => Date.now() >= midnight.getTime() + 5);
    chat.say("a new day");
    await chat.next("the answer", isAnswer);
    const again = await user.call("POST", path, { content: "and more", client_id: newId() });
    expect([again.status, again.headers.get("x-ratelimit-text-remaining")]).toEqual([202, "48"]);
    const { body: after } = await user.call("GET", "/api/user/usage");
    expect([after.text_messages.used, Date.parse(after.date) - Date.parse(before.date)]).toEqual([2, DAY_MS]);
    expect(Date.parse(after.reset_at) - midnight.getTime()).toBe(DAY_MS);
    expect(chat.closed).toBe(null);
    chat.close();
  } finally {
    await reef.stop();
  }
});
