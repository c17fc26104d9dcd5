import { afterAll, beforeAll, expect, test } from "bun:test";
import { connectDatabase, type Queryable, type Sql } from "../../src/db/connect.ts";
import { call } from "../factories.ts";
import { ApiProcess } from "../faults/apiProcess.ts";
import { startProcess, until } from "../harness.ts";
import { buy, deliverTo, isEmpty, mailsOf, makeBuyer, makeDue, openShop, rowOf, type Shop } from "./shop.ts";

let shop: Shop;
let sql: Sql;
let victim: ApiProcess;
beforeAll(async () => {
  shop = await openShop();
  sql = connectDatabase(shop.reef.env["DATABASE_URL"]!, { max: 4, name: "test" });
  await sql.unsafe(`
    create function hold_finish() returns trigger language plpgsql as $$
    begin perform pg_advisory_xact_lock(4712); return new; end $$;
    create trigger hold_finish before update on stripe_events for each row
      when (old.processed_at is null and new.processed_at is not null) execute function hold_finish();`);
  // Nobody but the one who is to die works at the inbox.
  await shop.reef.stopProcess();
  victim = new ApiProcess("victim", shop.reef.env, shop.reef.dir);
});
afterAll(async () => {
  await victim.kill();
  await sql.end();
  await shop.stop();
});

type Held = { user: { id: string }; customer: string };
/** Where a process that works at an event is held, so that it can be killed right there: by a lock that we have. */
const PLACES: [string, (tx: Queryable, buyer: Held) => Promise<unknown>, string][] = [
  [
    "before it has a ticket",
    (tx, { customer }) => tx`select 1 from stripe_customers where customer_id = ${customer} for update`,
    "update stripe_customers set fetch_started",
  ],
  [
    "with Stripe's answer, before it is stored",
    (tx, { user }) => tx`select pg_advisory_xact_lock(hashtext('reef:plan'), hashtext(${user.id}))`,
    "select pg_advisory_xact_lock(hashtext('reef:plan')",
  ],
  [
    "half stored, before the plan is applied",
    (tx, { user }) => tx`select 1 from users where id = ${user.id} for no key update`,
    "select 1 from users where id",
  ],
  [
    "stored and applied, before the event is done with",
    (tx) => tx`select pg_advisory_xact_lock(4712)`,
    "update stripe_events set processed_at",
  ],
];

for (const [name, hold, query] of PLACES) {
  test(`killed ${name}: another process does it, once`, async () => {
    const { stripe } = shop;
    await victim.start();
    const buyer = await makeBuyer({ ...shop, sql, reef: { ...shop.reef, url: victim.url } });
    deliverTo(stripe, victim.url);
    await sql.begin(async (tx) => {
      await hold(tx, buyer);
      buy(shop, buyer.customer, "pro monthly");
      await until("it is held there", async () => {
        const waiting = await sql`
          select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'
            and position(${query} in query) > 0`;
        return waiting.length > 0;
      });
      await victim.kill();
    });
    const survivor = await startProcess(shop.reef.env);
    try {
      deliverTo(stripe, survivor.url);
      await stripe.webhooks.settled();
      await makeDue(sql);
      await until("the inbox is empty", () => isEmpty(sql));
      const usage = await call(survivor.url, "GET", "/api/user/usage", undefined, buyer.user.token);
      expect(usage.body.plan).toBe("pro");
      expect(await rowOf(sql, buyer.user.id)).toMatchObject({ status: "active", plan: "pro" });
      expect((await mailsOf(sql, buyer.user.id)).length).toBe(1);
    } finally {
      await survivor.stop();
    }
  });
}
