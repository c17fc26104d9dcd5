import { afterAll, beforeAll, expect, test } from "bun:test";
import { newId } from "../../src/lib/ids.ts";
import { createAssistantFor } from "../../src/services/assistants.ts";
import { compareBilling } from "../../src/services/billingDrift.ts";
import { checkInvariants } from "../../src/services/invariants.ts";
import { reconcileBilling } from "../../src/services/reconcileBilling.ts";
import { createCustomer } from "../fakes/stripeCustomers.ts";
import type { Fault } from "../fakes/stripeRequests.ts";
import { shuffled } from "../fakes/stripeWebhooks.ts";
import { startProcess, until } from "../harness.ts";
import { act, expectedRow, pick, seeded, type Random } from "./history.ts";
import { deliverTo, isEmpty, makeDue, openShop, rowOf, type Shop } from "./shop.ts";

/** How many, and from which seed on; the same seed is the same history at Stripe. */
const HISTORIES = Number(process.env["BILLING_HISTORIES"] || 200);
const SEED = Number(process.env["BILLING_SEED"] || Math.floor(Math.random() * 1_000_000) + 1);
const ROUNDS = 12;
/** In the last rounds nothing is heard of some of them any more. */
const SILENT_ROUNDS = 3;

let shop: Shop;
let other: Awaited<ReturnType<typeof startProcess>>;
beforeAll(async () => {
  shop = await openShop();
  other = await startProcess(shop.reef.env);
});
afterAll(async () => {
  await other.stop();
  await shop.stop();
});

interface Person {
  userId: string;
  customer: string;
  random: Random;
  /** All that Stripe says of it at the end is lost. */
  silent: boolean;
}

async function makePeople(): Promise<Person[]> {
  const { sql, stripe } = shop;
  const people = Array.from({ length: HISTORIES }, (_, n): Person => {
    const userId = newId();
    const customer = createCustomer(stripe.account(), { metadata: { user_id: userId } }).id;
    return { userId, customer, random: seeded(SEED + n), silent: n % 5 === 0 };
  });
  const rows = people.map(({ userId }) => ({ id: userId, email: `${userId}@example.org` }));
  await sql`insert into users ${sql(rows, "id", "email")}`;
  // Of some the row is lost: their customers are found by what they say at Stripe.
  for (const { userId, customer } of people.filter(({ random }) => random() < 0.9))
    await sql`insert into stripe_customers (user_id, customer_id) values (${userId}, ${customer})`;
  return people;
}

/** Webhooks get lost, come twice, come late and in any order; Stripe's API has its moments, too. */
function disturb(): void {
  const { stripe } = shop;
  const [lost, faulty] = [seeded(SEED + 1_000_000), seeded(SEED + 2_000_000)];
  const wanted = ["checkout.session.completed", "customer.deleted", "charge.refunded", "charge.dispute.created"];
  stripe.webhooks.policy = ({ type }) => {
    const telling = /^(customer\.subscription\.|invoice\.(paid|payment_failed|payment_action_required)$)/.test(type);
    if (!telling && !wanted.includes(type)) return "drop";
    return lost() < 0.25 ? "drop" : "hold";
  };
  stripe.fault = () => {
    if (faulty() > 0.02) return null;
    return pick<Fault>(faulty, [
      { status: 500 },
      { status: 429 },
      { cut: "afterWork" },
      { status: 503, afterWork: true },
    ]);
  };
}

function silence(people: Person[]): void {
  const silent = new Set(people.flatMap((person) => (person.silent ? person.customer : [])));
  const { policy } = shop.stripe.webhooks;
  shop.stripe.webhooks.policy = (event) => {
    const { object, id, customer } = event.data.object;
    return silent.has(object === "customer" ? id : customer) ? "drop" : policy(event);
  };
}

/** All that is kept back, some of it twice, to one process or the other. */
async function release(random: Random): Promise<void> {
  const { webhooks } = shop.stripe;
  deliverTo(shop.stripe, random() < 0.5 ? shop.reef.url : other.url);
  await webhooks.release((held) => shuffled([...held, ...held.filter(() => random() < 0.15)], random));
}

async function live(people: Person[], random: Random): Promise<void> {
  // What happens at Stripe asks `random` only, in an order that no timing changes.
  const dice = seeded(SEED + 3_000_000);
  let delivering: Promise<unknown> = Promise.resolve();
  for (let round = 0; round < ROUNDS; round++) {
    if (round === ROUNDS - SILENT_ROUNDS) silence(people);
    shop.stripe.advance({ seconds: 60 + Math.floor(random() * 5_400) });
    for (const person of people) if (person.random() < 0.7) act(shop, person.random, person.customer);
    if (random() < 0.6) shop.stripe.advance({ days: Math.ceil(random() * 20) });
    await delivering;
    delivering = release(dice);
    for (const { userId } of people.filter(() => dice() < 0.05))
      await createAssistantFor(shop.reef.deps, { userId } as never, {
        displayName: null,
        voice: null,
        claim: null,
      }).catch(() => undefined);
    await makeDue(shop.sql);
  }
  await delivering;
}

/** Whose row is not what Stripe says, in words. */
async function faultsOf(people: Person[]): Promise<string[]> {
  const faults: string[] = [];
  for (const { userId, customer } of people) {
    const [row, wanted] = [await rowOf(shop.sql, userId), expectedRow(shop, customer)];
    // Of whom nothing was ever heard, and who pays for nothing, nothing is known.
    const heard = await shop.sql`select 1 from stripe_customers where user_id = ${userId}`;
    if (heard.length === 0 && row === null && wanted.plan === "free") continue;
    if (!Bun.deepMatch(wanted.row ?? {}, row ?? {}) || (row === null) !== (wanted.row === null))
      faults.push(`${customer}: ${JSON.stringify(row)} instead of ${JSON.stringify(wanted.row)}`);
    const [user] = await shop.sql<{ plan: string; applied: string }[]>`
      select plan_of(id) as plan, applied_plan as applied from users where id = ${userId}`;
    if (user!.plan !== wanted.plan || user!.applied !== wanted.plan)
      faults.push(`${customer}: plan ${user!.plan}, applied ${user!.applied}, instead of ${wanted.plan}`);
  }
  return faults;
}

test(
  `${HISTORIES} random histories from seed ${SEED}: after one reconciliation every row is what Stripe says`,
  async () => {
    console.log(`BILLING_SEED=${SEED} BILLING_HISTORIES=${HISTORIES}`);
    const random = seeded(SEED);
    const people = await makePeople();
    disturb();
    await live(people, random);
    shop.stripe.fault = null;
    await until(
      "the inbox is empty",
      async () => {
        await makeDue(shop.sql);
        return isEmpty(shop.sql);
      },
      30_000 + HISTORIES * 100,
    );
    const lost = await faultsOf(people);
    const { repaired, left } = await reconcileBilling(shop.reef.deps, { settleMs: 0 });
    console.log(`${lost.length} rows were wrong without it, ${repaired.length} were mended`);
    expect(left).toEqual([]);
    expect({ seed: SEED, faults: await faultsOf(people) }).toEqual({ seed: SEED, faults: [] });
    // So much was lost that there was something to put right, and not more than that was.
    expect(repaired.length).toBeGreaterThan(0);
    expect(lost.length).toBeGreaterThan(0);
    expect((await compareBilling(shop.reef.deps, { settleMs: 0 })).differences).toEqual([]);
    const findings = await checkInvariants(shop.reef.deps, { patienceMs: 5_000, timeoutMs: 20_000 });
    expect(findings.filter(({ status }) => status !== "ok")).toEqual([]);
  },
  120_000 + HISTORIES * 1_000,
);
