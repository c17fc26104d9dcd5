import { afterAll, beforeAll, expect, test } from "bun:test";
import { createUser } from "../../src/db/users.ts";
import type { Queryable, Sql } from "../../src/db/connect.ts";
import { newId } from "../../src/lib/ids.ts";
import { openSession, refreshSession } from "../../src/services/sessions.ts";
import { startTestReef, type TestReef } from "../harness.ts";
import { createRandom, type Random } from "../simulation/random.ts";

/*
 * Random histories of one session against the real refresh, on the real Postgres. The model knows two parties only by what
 * they hold. An honest device keeps docs/accounts.md: one token in one place; one refresh at a time, which it may repeat, also
 * side by side, with the same token, until an answer comes; it takes one of the answers, whichever, and forgets the others;
 * a request that still wanders about is over before the next refresh ends. A thief keeps no rule at all.
 */

const RUNS = 1_500;
const SEED = 20_261_124;

let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef()));
afterAll(() => reef.stop());

/** One session with its counts. `present` is a request that reached the server; null: refused. */
interface World {
  token: string;
  sessionId: string;
  present(token: string): Promise<string | null>;
}

/** Each run is one transaction on its connection: the statements and their order are those of one refresh after the other. */
async function withSession<T>(run: (world: World, sql: Queryable) => Promise<T>): Promise<T> {
  const result = await reef.sql.begin(async (sql) => {
    const userId = newId();
    const email = `${userId}@example.org`;
    await createUser(sql, { id: userId, email, passwordHash: "none", name: null, timezone: "UTC" });
    const first = await openSession(reef.deps, sql, { userId, deviceName: null, ip: null });
    const inside = { begin: (work: (sql: Queryable) => unknown) => work(sql) } as unknown as Sql;
    const deps = { ...reef.deps, sql: inside };
    const [row] = await sql<{ id: string }[]>`select id from refresh_tokens where user_id = ${userId}`;
    const present = (token: string) =>
      refreshSession(deps, { ip: null, requestId: "property" }, token).then(
        (tokens) => tokens.refresh_token,
        () => null,
      );
    return run({ token: first.refresh_token, sessionId: row!.id, present }, sql);
  });
  return result as T;
}

/** A device that keeps the rules. It holds one token; what is still under way of its last refresh comes when it comes. */
class Device {
  late: string[] = [];
  refused = false;
  requests = 0;
  lost = 0;
  refreshes = 0;
  constructor(
    readonly world: World,
    readonly draw: Random,
    public token: string,
  ) {}

  /** One refresh, from its first request to the answer that the device takes. */
  async refresh(): Promise<void> {
    const { draw } = this;
    const token = this.token;
    this.refreshes += 1;
    const answers: string[] = [];
    while (answers.length === 0 && !this.refused) {
      for (let copies = draw.chance(0.25) ? 2 : 1; copies > 0; copies--) {
        this.requests += 1;
        // Not there yet: it is handled after the device has its answer from another copy.
        if (copies > 1 && draw.chance(0.4)) this.late.push(token);
        else await this.ask(token, answers);
      }
    }
    if (!this.refused) this.token = draw.pick(answers);
    if (draw.chance(0.7)) await this.settle();
  }

  private async ask(token: string, answers: string[]): Promise<void> {
    if (this.draw.chance(0.1)) return void (this.lost += 1); // The request was lost on its way.
    const answer = await this.world.present(token);
    if (answer === null) this.refused = true;
    else if (this.draw.chance(0.35)) this.lost += 1;
    else answers.push(answer);
  }

  /** Requests that wandered about arrive; nobody waits for their answers. */
  async settle(): Promise<void> {
    for (const token of this.late.splice(0)) if ((await this.world.present(token)) === null) this.refused = true;
  }
}

async function theftsOf(sql: Queryable, sessionId: string): Promise<number> {
  const [row] = await sql<{ n: number }[]>`
    select count(*)::int as n from audit_log
    where action = 'session.token_reuse' and details->>'session_id' = ${sessionId}`;
  return row!.n;
}

async function runAll(runs: number, run: (draw: Random) => Promise<void>): Promise<void> {
  let next = 0;
  const worker = async () => {
    for (let i = next++; i < runs; i = next++) await run(createRandom(SEED, i));
  };
  await Promise.all(Array.from({ length: 6 }, worker));
}

test("an honest device alone is never signed out, whatever it loses, repeats or sends twice", async () => {
  const sum = { runs: 0, refreshes: 0, requests: 0, lost: 0 };
  await runAll(RUNS, (draw) =>
    withSession(async (world, sql) => {
      const device = new Device(world, draw, world.token);
      for (let i = draw.int(2, 6); i > 0; i--) {
        await device.settle();
        await device.refresh();
      }
      expect([device.refused, await theftsOf(sql, world.sessionId)]).toEqual([false, 0]);
      sum.runs += 1;
      sum.refreshes += device.refreshes;
      sum.requests += device.requests;
      sum.lost += device.lost;
    }),
  );
  console.log(`honest: ${JSON.stringify(sum)}`);
  expect(sum.runs).toBe(RUNS);
}, 120_000);

/** Whoever stole a token once: it tries what it has in any order, as often as it likes, and loses answers, too. */
class Thief {
  /** What it was given since: presenting one of these is going on. */
  readonly given = new Set<string>();
  wentOn = false;
  requests = 0;
  constructor(
    readonly world: World,
    readonly draw: Random,
    readonly loot: string[],
  ) {}

  /** False when it was refused. */
  async act(): Promise<boolean> {
    const { draw, loot } = this;
    const token = draw.chance(0.6) ? loot.at(-1)! : draw.pick(loot);
    const answer = await this.world.present(token);
    this.requests += 1;
    if (answer === null) return false;
    this.wentOn ||= this.given.has(token);
    if (draw.chance(0.8)) {
      this.given.add(answer);
      loot.push(answer);
    }
    return true;
  }
}

/** After a while of honest use somebody copies a token; then both go on in any order until the session ends. */
async function playTheft(world: World, draw: Random): Promise<{ by: "device" | "thief"; requests: number }> {
  const device = new Device(world, draw, world.token);
  const had = [world.token];
  for (let i = draw.int(0, 3); i > 0; i--) {
    await device.refresh();
    await device.settle();
    had.push(device.token);
  }
  const thief = new Thief(world, draw, [draw.chance(0.7) ? device.token : draw.pick(had)]);
  const given = new Set<string>();
  const before = device.requests;
  let deviceWentOn = false;
  for (let step = 0; step < 100; step++) {
    const by = draw.chance(0.5) ? "thief" : "device";
    const token = device.token;
    if (by === "device") await device.refresh().then(() => device.settle());
    const goesOn = by === "thief" ? await thief.act() : !device.refused;
    if (!goesOn) {
      expect([await world.present(device.token), await world.present(thief.loot.at(-1)!)]).toEqual([null, null]);
      return { by, requests: thief.requests + device.requests - before };
    }
    if (by === "device") {
      deviceWentOn ||= given.has(token);
      given.add(device.token);
    }
    // Each has used what it was given since the theft: two devices on one session.
    if (thief.wentOn && deviceWentOn) throw new Error("both went on");
  }
  throw new Error("the session never ended");
}

test("a thief ends the session at the latest when both have gone on, whatever it tries; the audit says so once", async () => {
  const sum = { runs: 0, endedByThief: 0, endedByDevice: 0, requests: 0, mostRequests: 0 };
  await runAll(RUNS, (draw) =>
    withSession(async (world, sql) => {
      const { by, requests } = await playTheft(world, draw);
      expect(await theftsOf(sql, world.sessionId)).toBe(1);
      sum.runs += 1;
      sum[by === "thief" ? "endedByThief" : "endedByDevice"] += 1;
      sum.requests += requests;
      sum.mostRequests = Math.max(sum.mostRequests, requests);
    }),
  );
  console.log(`thief: ${JSON.stringify(sum)}`);
  expect(sum.runs).toBe(RUNS);
}, 120_000);
