import type { Redis } from "ioredis";
import type { Sql } from "../../src/db/connect.ts";
import { getUsage, USAGE_KINDS, type Amounts } from "../../src/db/usage.ts";
import { newId } from "../../src/lib/ids.ts";
import {
  findCheapRefusal,
  isRefused,
  reserveUsage,
  settleUsage,
  sweepReservations,
  type Refused,
} from "../../src/services/usage.ts";
import { TOTALS_MS } from "../../src/services/usageCache.ts";
import type { Random } from "../simulation/random.ts";
import { KINDS, Model, none } from "./model.ts";
import { UsageProcess } from "./process.ts";
import { Task } from "./task.ts";

/** Where runs take place, one after the other: a database and a Redis. */
export interface Lane {
  databaseUrl: string;
  redisUrl: string;
  sql: Sql;
  redis: Redis;
}

/** What must be true at one moment: a refusal or a grant is right by one of the moments while it was asked for. */
interface Moment {
  used: Amounts;
  limits: Amounts;
}
interface Verdict {
  since: number;
  amounts: Partial<Amounts>;
  /** The day after a grant; null: refused. */
  after: Amounts | null;
  refused?: Refused;
  by: "redis" | "postgres";
}

const GIVEN_UP_MS = 500;

export class Violation extends Error {}

/** One user's day in several processes, a model beside it. Every step is followed by a look at all that must be true. */
export class Run {
  readonly tasks: Task[] = [];
  readonly model = new Model();
  readonly counts: Record<string, number> = {};
  private readonly moments: Moment[] = [];
  private readonly verdicts: Verdict[] = [];
  /** By the run's own clock: until when Redis may refuse what fits, because it could not be told. */
  private staleUntilMs = 0;
  private clockMs = 0;
  /** Redis was emptied while a refusal was on its way to it. */
  private mayArriveLate = false;
  private born = 0;

  private constructor(
    private readonly lane: Lane,
    readonly random: Random,
    readonly userId: string,
    private readonly prefix: string,
    readonly processes: UsageProcess[],
  ) {}

  static async begin(lane: Lane, random: Random, processes: number): Promise<Run> {
    const userId = newId();
    // Far from midnight, wherever the sun stands.
    const hour = new Date().getUTCHours() - 12;
    await lane.sql`insert into users (id, email, timezone)
      values (${userId}, ${`${userId}@example.org`}, ${`Etc/GMT${hour < 0 ? hour : `+${hour}`}`})`;
    const run = new Run(lane, random, userId, `${userId}:`, []);
    for (let n = 0; n < processes; n++) await run.addProcess();
    await run.look();
    return run;
  }

  async addProcess(): Promise<void> {
    const { lane, prefix } = this;
    this.processes.push(await UsageProcess.open(`${this.prefix}${++this.born}`, { ...lane, prefix }));
  }

  /** Dies; another takes its place. */
  async replace(process: UsageProcess): Promise<void> {
    process.kill();
    for (const task of this.tasks.filter((one) => one.process === process)) task.abandon();
    this.tasks.splice(0, this.tasks.length, ...this.tasks.filter((one) => !one.over));
    this.processes.splice(this.processes.indexOf(process), 1);
    await this.addProcess();
  }

  reserve(process: UsageProcess, amounts: Partial<Amounts>, how: { expiresInMs: number | null; abort: boolean }): Task {
    const key = newId();
    const { userId } = this;
    return this.begin("reserve", process, async (task) => {
      const since = this.moments.length - 1;
      const cheap = await findCheapRefusal(task.deps, userId, amounts);
      if (cheap) return void this.verdicts.push({ since, amounts, after: null, refused: cheap, by: "redis" });
      let limits = none();
      await this.transaction(task, how.abort, async (sql) => {
        const usage = await getUsage(sql, userId);
        await task.pause("day read");
        const outcome = await reserveUsage(task.deps, sql, { userId, key, usage, amounts, ...how });
        if (isRefused(outcome)) {
          this.verdicts.push({ since, amounts, after: null, refused: outcome, by: "postgres" });
          return false;
        }
        limits = outcome.limits;
        if (!how.abort) this.verdicts.push({ since, amounts, after: outcome.used, by: "postgres" });
        return true;
      }).then((done) => done && this.model.reserve(key, amounts, limits, how.expiresInMs !== null));
    });
  }

  settle(
    process: UsageProcess,
    key: string,
    how: { status: "committed" | "released"; actual?: Partial<Amounts>; abort: boolean },
  ): Task {
    const { userId } = this;
    return this.begin("settle", process, async (task) => {
      let returned: Amounts | null = null;
      const done = await this.transaction(task, how.abort, async (sql) => {
        returned = (await settleUsage(task.deps, sql, { userId, key, ...how }))?.returned ?? null;
        return true;
      });
      if (!done) return;
      const expected = this.model.settle(key, how.status, how.actual ?? {});
      this.demand(returned, expected, "what a settlement says came back");
      if (task.untold && expected) this.allowStale();
    });
  }

  sweep(process: UsageProcess): void {
    this.begin("sweep", process, async (task) => {
      await sweepReservations(task.deps);
      if (task.untold) this.allowStale();
    });
  }

  /** Changes the user's plan, or what a plan gives, as an operator may by hand; every living process hears of it. */
  async changePlan(change: (sql: Sql) => Promise<unknown>): Promise<void> {
    const heard = this.processes.map((process) => process.heard + 1);
    await change(this.lane.sql);
    await this.waitUntil("every process has heard of the plan", () =>
      this.processes.every((process, index) => process.heard >= heard[index]!),
    );
    if (!this.processes.some((process) => process.told)) this.allowStale();
  }

  async emptyRedis(): Promise<void> {
    const { lane } = this;
    this.mayArriveLate ||= this.mayComeLate();
    await lane.redis.del(...(await this.keys()));
  }

  /** Time goes by, for Redis and for reservations; not while somebody stands still, who would count as dead. */
  async letTimePass(ms: number): Promise<void> {
    if (this.tasks.length > 0 || this.processes.some(({ frozen }) => frozen)) return;
    this.clockMs += ms;
    for (const key of await this.keys()) {
      const left = await this.lane.redis.pttl(key);
      if (left > ms) await this.lane.redis.pexpire(key, left - ms);
      else await this.lane.redis.del(key);
    }
    await this.lane.sql`update usage_logs set expires_at = expires_at - make_interval(secs => ${ms / 1000})
      where user_id = ${this.userId} and status = 'reserved'`;
  }

  /** Lets a task go on, and waits until all that it set going has stopped again, or waits for a lock. */
  async resume(task: Task): Promise<void> {
    task.resume();
    for (;;) {
      const running = this.tasks.filter((one) => one.place === null && !one.over);
      if (running.length === 0) break;
      const stopped = Promise.race(running.map((one) => one.stopped()));
      if (await Promise.race([stopped.then(() => false), Bun.sleep(2).then(() => true)])) {
        if (await this.areWaiting(running)) break;
      }
    }
    for (const one of this.tasks) if (one.over) await one.stopped();
    this.tasks.splice(0, this.tasks.length, ...this.tasks.filter((one) => !one.over));
  }

  /** All that must be true now. */
  async look(): Promise<void> {
    const { userId, lane } = this;
    if (this.mayArriveLate) {
      this.allowStale();
      this.mayArriveLate = this.mayComeLate();
    }
    const [row] = await lane.sql<{ day: Record<string, number> | null; limits: Amounts; lines: DatabaseLine[] }[]>`
      select (select to_json(d) from daily_usage d where d.user_id = ${userId}) as day,
        (select json_build_object('textMessages', text_messages, 'voiceInputSeconds', voice_input_seconds,
          'voiceOutputSeconds', voice_output_seconds, 'ttsCharacters', tts_characters)
          from plan_limits where plan = plan_of(${userId})) as limits,
        (select coalesce(json_agg(json_build_object('key', idempotency_key, 'kind', kind, 'status', status,
          'amount', amount, 'expired', expires_at < now())), '[]') from usage_logs where user_id = ${userId}) as lines`;
    const { day, limits, lines } = row!;
    this.followSweeps(lines);
    const used = this.model.used();
    for (const kind of KINDS) {
      const counted = lines.filter((line) => line.kind === USAGE_KINDS[kind] && line.status !== "released");
      const sum = counted.reduce((total, { amount }) => total + amount, 0);
      const says = day?.[USAGE_KINDS[kind]] ?? 0;
      this.demand([says, sum], [used[kind], used[kind]], `the day's ${kind} and the sum of its ledger`);
    }
    const shown = lines.map(({ key, kind, status, amount }) => `${key} ${kind} ${status} ${amount}`);
    const expected = this.model
      .lines()
      .map(({ key, kind, status, charged }) => `${key} ${USAGE_KINDS[kind]} ${status} ${charged}`);
    const amountless = (text: string) => (text.includes(" released ") ? text.replace(/ \d+$/, "") : text);
    this.demand(shown.map(amountless).sort(), expected.map(amountless).sort(), "the ledger");
    this.moments.push({ used, limits });
    this.count("looks");
    for (const verdict of this.verdicts.splice(0)) this.judge(verdict);
  }

  /** Whether everything that had expired is back. */
  async lookForExpired(): Promise<void> {
    const rows = await this.lane.sql`
      select 1 from usage_logs where user_id = ${this.userId} and status = 'reserved' and expires_at < now()`;
    this.demand(rows.length, 0, "reservations that have expired and that a sweep has left");
  }

  async end(): Promise<void> {
    await Promise.all(this.processes.map((process) => process.close()));
    await this.lane.redis.del(...(await this.keys()));
  }

  private begin(name: string, process: UsageProcess, body: (task: Task) => Promise<void>): Task {
    this.count(name);
    const task = new Task(name, process, body);
    this.tasks.push(task);
    return task;
  }

  private async transaction(task: Task, abort: boolean, work: (sql: Sql) => Promise<boolean>): Promise<boolean> {
    await task.pause("before the transaction");
    const aborted = new Error("aborted");
    try {
      return await task.deps.sql.begin(async (sql) => {
        await task.meet(sql);
        await task.pause("begun");
        const done = await work(sql as unknown as Sql);
        await task.pause("before the commit");
        if (abort) throw aborted;
        return done;
      });
    } catch (error) {
      if (error !== aborted) throw error;
      return false;
    } finally {
      task.backend = null;
    }
  }

  private judge({ since, amounts, after, refused, by }: Verdict): void {
    const moments = this.moments.slice(since);
    const wanted = KINDS.filter((one) => (amounts[one] ?? 0) > 0);
    if (after) {
      this.count("granted");
      if (moments.some(({ limits }) => wanted.every((one) => after[one] <= limits[one]))) return;
      throw new Violation(`more than the limit: ${JSON.stringify({ amounts, after, moments })}`);
    }
    this.count(`refused by ${by}`);
    const { kind, usage } = refused!;
    const full = (day: Moment) => day.used[kind] + (amounts[kind] ?? 0) > day.limits[kind];
    this.demand([wanted.includes(kind), full(usage)], [true, true], `what a refusal by ${by} says`);
    if (moments.some(full)) return;
    if (by === "redis" && this.clockMs < this.staleUntilMs) return this.count("refused too late, as allowed");
    throw new Violation(`refused below the limit by ${by}: ${JSON.stringify({ amounts, kind, moments })}`);
  }

  // Which of the expired ones a sweep in progress has come to is seen in the ledger.
  private followSweeps(lines: DatabaseLine[]): void {
    const expiring = new Set(this.model.expiring());
    for (const { key, status, expired } of lines) {
      if (status !== "released" || !expired || !expiring.delete(key)) continue;
      this.model.settle(key, "released", {});
      this.count("swept");
      if (this.tasks.some((task) => task.name === "sweep" && task.untold)) this.allowStale();
    }
  }

  private allowStale(): void {
    this.staleUntilMs = this.clockMs + TOTALS_MS;
  }

  /** The same on a busy machine: what nobody waits for any more may still be on its way. */
  private mayComeLate(): boolean {
    return this.isOnItsWay() || this.processes.some(({ gaveUpMs }) => performance.now() - gaveUpMs < GIVEN_UP_MS);
  }

  /** Whether something that Redis is told may come after what is done now. */
  isOnItsWay(): boolean {
    const telling = (task: Task) => task.place === "redis" && (task.backend !== null || task.name === "sweep");
    return this.tasks.some(telling) || this.processes.some(({ frozen }) => frozen);
  }

  private async keys(): Promise<string[]> {
    const { prefix, userId, lane } = this;
    const days = await lane.redis.keys(`${prefix}ratelimit:*`);
    return [...days, `${prefix}plan:${userId}`, `${prefix}plan:everyone`];
  }

  /** Whether all these tasks wait for locks that others hold. */
  private async areWaiting(tasks: Task[]): Promise<boolean> {
    const rows = await this.lane.sql<{ pid: number; name: string }[]>`
      select pid, application_name as name from pg_stat_activity
      where datname = current_database() and cardinality(pg_blocking_pids(pid)) > 0`;
    const waiting = new Map(rows.map(({ pid, name }) => [pid, name]));
    const known = tasks.filter(({ backend }) => backend !== null);
    if (!known.every(({ backend }) => waiting.delete(backend!))) return false;
    // A sweep's connection is not known by its number.
    const names = [...waiting.values()];
    return tasks.every((task) => task.backend !== null || names.includes(task.process.name));
  }

  private async waitUntil(what: string, check: () => boolean): Promise<void> {
    for (let waited = 0; !check(); waited++) {
      if (waited > 30_000) throw new Violation(`waited in vain until ${what}`);
      await Bun.sleep(1);
    }
  }

  private demand(is: unknown, must: unknown, what: string): void {
    if (Bun.deepEquals(is, must)) return;
    throw new Violation(`${what}: ${JSON.stringify(is)}, must be ${JSON.stringify(must)}`);
  }

  private count(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1;
  }
}

interface DatabaseLine {
  key: string;
  kind: string;
  status: string;
  amount: number;
  expired: boolean | null;
}
