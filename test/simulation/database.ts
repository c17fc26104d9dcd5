import type { Sql } from "../../src/db/connect.ts";
import type { Owner, World } from "./world.ts";

/** What befalls a process at one of its next database operations. */
export interface SqlFault {
  /** How many operations go well before it. */
  after: number;
  at: "any" | "commit";
  /** Before it reached Postgres, or when it was done and only the answer is lost. */
  when: "before" | "after";
  what: "cut" | "crash";
}

export interface SimulatedSql {
  sql: Sql;
  arm(fault: SqlFault): void;
  /** Ends the open transactions, as Postgres does when their process is gone or silent. */
  cutTransactions(): void;
}

interface Tx {
  name: string;
  open: boolean;
  notices: string[];
  aborted: PromiseWithResolvers<never>;
  /** Settles when Postgres has committed or rolled back. */
  finished: Promise<unknown>;
  fail: (error: Error) => void;
  /** Who waits for an answer. */
  pending: Set<(error: Error) => void>;
  /** Queries that go out together are done in order: each waits for the one before, which may wait for a lock. */
  last: Promise<unknown>;
}

// The wrapper only passes queries on; what they answer is no business of it.
// oxlint-disable-next-line typescript/no-explicit-any
type Any = any;

const CONTINUING = 40;
const NOTIFY = "select pg_notify(";

const cutError = () => Object.assign(new Error("simulated: the connection was cut"), { code: "CONNECTION_CLOSED" });

/** The real Postgres as one process sees it: each query, begin and commit happens when the world draws it. */
export class ProcessDatabase implements SimulatedSql {
  readonly sql: Sql;
  private fault: SqlFault | null = null;
  private readonly open = new Set<Tx>();

  constructor(
    private readonly world: World,
    private readonly owner: Owner,
    pool: Sql,
    private readonly hooks: { crash(): void; notified(payload: string): void },
  ) {
    this.sql = this.wrap(pool, null);
  }

  arm(fault: SqlFault): void {
    this.fault = { ...fault };
  }

  cutTransactions(): void {
    for (const tx of this.open) this.cut(tx);
  }

  disarm(): void {
    this.fault = null;
  }

  private wrap(real: Any, tx: Tx | null): Sql {
    const call = (_: unknown, __: unknown, args: Any[]) => {
      const [strings] = args;
      if (!Array.isArray(strings) || !("raw" in strings)) return real(...args);
      if (!String(strings[0]).startsWith(NOTIFY)) return this.lazily(real(...args), String(strings[0]), tx);
      return this.notify(String(args[2]), tx, real(...args));
    };
    const get = (target: Any, name: string) =>
      name === "begin" ? (work: Any) => this.begin(real, work) : target[name];
    return new Proxy(real, { apply: call, get }) as Sql;
  }

  /** Asked of Postgres, which says whether its condition holds; what it then sends, nobody hears there. */
  private async notify(payload: string, tx: Tx | null, query: Any): Promise<unknown> {
    const rows = await this.lazily(query, NOTIFY, tx);
    if (rows.length === 0) return rows;
    if (tx) tx.notices.push(payload);
    else this.hooks.notified(payload);
    return rows;
  }

  /** A query of the library runs when somebody waits for it; a part of another query never does. */
  private lazily(query: Any, text: string, tx: Tx | null): Any {
    const native = query.then.bind(query);
    const label = text.trim().slice(0, 60).replaceAll(/\s+/g, " ");
    let answer: Promise<unknown> | undefined;
    const ask = () =>
      (answer ??= this.gate(tx, label, () => new Promise((resolve, reject) => native(resolve, reject))));
    // oxlint-disable-next-line unicorn/no-thenable, promise/no-callback-in-promise
    query.then = (done: Any, failed: Any) => ask().then(done, failed);
    query.catch = (failed: Any) => ask().catch(failed);
    query.finally = (last: Any) => ask().finally(last);
    return query;
  }

  private gate<T>(tx: Tx | null, label: string, execute: () => Promise<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (tx && !tx.open) return reject(cutError());
      const run = async () => {
        tx?.pending.delete(reject);
        const fault = this.nextFault(label);
        if (fault?.when === "before") return this.strike(fault, tx, reject);
        const settle = await execute().then(
          (value) => () => resolve(value),
          (error: Error) => () => reject(error),
        );
        if (fault) return this.strike(fault, tx, reject);
        this.deliver(settle);
      };
      const operation = {
        channel: tx ? tx.name : this.world.unique("sql"),
        owner: this.owner,
        label,
        weight: tx ? CONTINUING : 10,
        run,
      };
      if (!tx) return this.world.add(operation);
      tx.pending.add(reject);
      const before = tx.last;
      const ended = Promise.withResolvers<void>();
      tx.last = ended.promise;
      const addInTurn = () => {
        if (tx.open) this.world.add({ ...operation, run: () => run().finally(() => ended.resolve()) });
        else ended.resolve();
      };
      void before.then(addInTurn);
    });
  }

  private begin(real: Any, work: (sql: Any) => Promise<unknown>): Promise<unknown> {
    return new Promise((resolve, fail) => {
      const run = async () => {
        const fault = this.nextFault("begin");
        if (fault?.when === "before") return this.strike(fault, null, fail);
        const entered = Promise.withResolvers<void>();
        const aborted = Promise.withResolvers<never>();
        const name = this.world.unique("tx");
        const tx: Tx = {
          name,
          open: true,
          notices: [],
          aborted,
          finished: entered.promise,
          fail,
          pending: new Set(),
          last: Promise.resolve(),
        };
        this.open.add(tx);
        tx.finished = real.begin((connection: Any) => {
          entered.resolve();
          return Promise.race([aborted.promise, this.inside(tx, this.wrap(connection, tx), work, resolve)]);
        });
        tx.finished.catch(() => undefined);
        await Promise.race([entered.promise, tx.finished.catch(() => undefined)]);
        if (fault) this.strike(fault, tx, fail);
      };
      this.world.add({ channel: this.world.unique("sql"), owner: this.owner, label: "begin", run });
    });
  }

  private async inside(tx: Tx, sql: Sql, work: (sql: Any) => Promise<unknown>, resolve: (value: unknown) => void) {
    let end: { value: unknown } | { error: unknown };
    try {
      end = { value: await work(sql) };
    } catch (error) {
      end = { error };
    }
    await this.beforeEnd(tx, "value" in end ? { value: end.value, resolve } : null);
    if ("error" in end) throw end.error;
    return end.value;
  }

  /** Waits until the world draws the commit (or the rollback); its answer is delivered when Postgres has done it. */
  private beforeEnd(tx: Tx, commit: { value: unknown; resolve: (value: unknown) => void } | null): Promise<void> {
    return new Promise((go) => {
      if (!tx.open) return;
      const label = commit ? "commit" : "rollback";
      const run = async () => {
        const fault = this.nextFault(label);
        if (fault?.when === "before") return this.strike(fault, tx, tx.fail);
        go();
        const error = await tx.finished.then(
          () => null,
          (reason: Error) => reason,
        );
        this.close(tx);
        if (!error) for (const payload of tx.notices) this.hooks.notified(payload);
        if (fault) return this.strike(fault, null, tx.fail);
        this.deliver(() => (error ? tx.fail(error) : commit!.resolve(commit!.value)));
      };
      this.world.add({ channel: tx.name, owner: this.owner, label, weight: CONTINUING, run });
    });
  }

  private cut(tx: Tx): void {
    this.close(tx);
    this.world.track(tx.finished);
    tx.aborted.reject(cutError());
    this.world.drop(tx.name);
    const told = () => {
      for (const reject of tx.pending) reject(cutError());
      tx.fail(cutError());
    };
    this.world.add({ channel: this.world.unique("sql"), owner: this.owner, label: "connection cut", run: told });
  }

  private close(tx: Tx): void {
    tx.open = false;
    this.open.delete(tx);
  }

  private nextFault(label: string): SqlFault | null {
    const { fault } = this;
    if (!fault || (fault.at === "commit" && label !== "commit")) return null;
    if (fault.after-- > 0) return null;
    this.fault = null;
    this.world.note(() => `${this.owner.name}: FAULT ${fault.what} ${fault.when} ${label}`);
    return fault;
  }

  private strike(fault: SqlFault, tx: Tx | null, reject: (error: Error) => void): void {
    if (fault.what === "crash") return this.hooks.crash();
    if (tx?.open) this.cut(tx);
    reject(cutError());
  }

  /** To a process that stands still only when it goes on. */
  private deliver(settle: () => void): void {
    const { owner, world } = this;
    if (owner.dead) return;
    if (!owner.frozen) return settle();
    world.add({ channel: world.unique("sql"), owner, label: "late answer", run: settle });
  }
}
