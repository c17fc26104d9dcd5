import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { newId } from "../../src/lib/ids.ts";
import { WEBHOOK_BODY_BYTES } from "../../src/protocol/subscription.ts";
import { call, makeUser } from "../factories.ts";
import { createCustomer } from "../fakes/stripeCustomers.ts";
import { startTestReef, until } from "../harness.ts";
import { buy, makeBuyer, openShop, planOf, post, type Shop } from "./shop.ts";

let shop: Shop;
beforeAll(async () => void (shop = await openShop()));
afterAll(() => shop.stop());

const event = (over: object = {}) =>
  JSON.stringify({
    id: `evt_${newId()}`,
    object: "event",
    type: "invoice.paid",
    created: Math.floor(Date.now() / 1000),
    livemode: false,
    data: { object: { id: "in_1", object: "invoice", customer: "cus_unknown" } },
    ...over,
  });
const sign = (body: string, options: Parameters<Shop["stripe"]["webhooks"]["sign"]>[1] = {}) =>
  shop.stripe.webhooks.sign(body, options);
const stored = async (body: string) => {
  const rows = await shop.sql`select * from stripe_events where id = ${JSON.parse(body).id}`;
  return rows[0] ?? null;
};
const outcomeOf = (body: string) =>
  until("it is done with", async () => (await stored(body))?.["outcome"] as string | undefined);

describe("what is not Stripe's is refused, and nothing of it is stored", () => {
  const seconds = () => Math.floor(Date.now() / 1000);
  const bad: [string, (body: string) => [string, string?]][] = [
    ["no signature", (body) => [body]],
    ["an empty one", (body) => [body, ""]],
    ["nonsense", (body) => [body, "t=1,v1=x,,=,"]],
    ["a forged one", (body) => [body, sign(body, { secrets: ["whsec_guessed"] })]],
    ["one of another body", (body) => [body, sign(event())]],
    ["a stale one", (body) => [body, sign(body, { timestamp: seconds() - 301 })]],
    ["a truncated body", (body) => [body.slice(0, -1), sign(body)]],
    ["a longer body", (body) => [`${body} `, sign(body)]],
    ["no body", (body) => ["", sign(body)]],
    ["a signature of another scheme", (body) => [body, sign(body).replace("v1=", "v0=")]],
  ];
  for (const [name, forge] of bad) {
    test(name, async () => {
      const body = event();
      const answer = await post(shop, ...forge(body));
      expect([answer.status, answer.body.code]).toEqual([400, "invalid_signature"]);
      expect(await stored(body)).toBeNull();
    });
  }
  test("what is signed but no event", async () => {
    for (const body of ["[]", "{}", "null", '"x"', '{"id":"evt_1"}', event({ id: 1 }), "not json"])
      expect([(await post(shop, body, sign(body))).status, body]).toEqual([400, body]);
  });
});

test("any of the secrets will do; one event is one row, however often it comes", async () => {
  const body = event();
  for (const secrets of [["whsec_old"], ["whsec_reef"], ["whsec_new", "whsec_reef"]])
    expect((await post(shop, body, sign(body, { secrets }))).status).toBe(200);
  const answers = await Promise.all(Array.from({ length: 8 }, () => post(shop, body, sign(body))));
  expect(answers.map(({ status, body: json }) => [status, json])).toEqual(
    Array.from({ length: 8 }, () => [200, { received: true }]),
  );
  expect(await outcomeOf(body)).toBe("ignored: unknown customer");
});

test("large ones are taken, larger ones refused before and while they come; elsewhere the limit is as it was", async () => {
  const padded = (bytes: number) => {
    const rest = event({ padding: "" });
    return rest.replace('"padding":""', `"padding":"${"x".repeat(bytes - rest.length)}"`);
  };
  const large = padded(WEBHOOK_BODY_BYTES);
  expect((await post(shop, large, sign(large))).status).toBe(200);
  const huge = padded(WEBHOOK_BODY_BYTES + 1);
  const answer = await post(shop, huge, sign(huge));
  expect([answer.status, answer.body.code]).toEqual([413, "body_too_large"]);
  const streamed = await fetch(`${shop.reef.url}/api/webhooks/stripe`, {
    method: "POST",
    headers: { "stripe-signature": sign(huge) },
    body: new ReadableStream({
      pull(controller) {
        controller.enqueue(new TextEncoder().encode("x".repeat(100_000)));
      },
    }),
  });
  expect(streamed.status).toBe(413);
  const login = await call(shop.reef.url, "POST", "/api/auth/login", { email: "x".repeat(70_000), password: "x" });
  expect(login.status).toBe(413);
});

test("of another mode, of a connected account, or of no interest: kept as ignored, nothing is asked", async () => {
  const { customer } = await makeBuyer(shop);
  const data = { object: { id: "in_1", object: "invoice", customer } };
  const before = shop.stripe.requests.length;
  const cases: [string, string][] = [
    [event({ data, livemode: true }), "ignored: another mode"],
    [event({ data, account: "acct_other" }), "ignored: another account"],
    [event({ data, type: "invoice.upcoming" }), "ignored: type"],
    [event({ data, type: "something.new_in_2030" }), "ignored: type"],
  ];
  for (const [body, outcome] of cases) {
    expect((await post(shop, body, sign(body))).status).toBe(200);
    expect(await stored(body)).toMatchObject({ outcome, attempts: 0 });
    expect((await stored(body))!["processedAt"]).not.toBeNull();
  }
  expect(shop.stripe.requests.length).toBe(before);
});

test("only ids are kept", async () => {
  const { user, customer } = await makeBuyer(shop);
  buy(shop, customer, "pro monthly");
  await shop.settled();
  const rows = await shop.sql`select row_to_json(e)::text as row from stripe_events e where customer_id = ${customer}`;
  expect(rows.length).toBeGreaterThan(2);
  for (const { row } of rows) expect(row).not.toContain(user.email);
});

test("it is answered when it is stored, not before; and 503 when it can't be", async () => {
  const body = event();
  let answered: number | null = null;
  const { promise: free, resolve: release } = Promise.withResolvers<void>();
  const blocking = shop.sql.begin(async (tx) => {
    await tx`lock table stripe_events in share mode`;
    void post(shop, body, sign(body)).then(({ status }) => (answered = status));
    await until("it waits to be stored", async () => {
      const waiting = await shop.sql`
        select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like '%insert into stripe_events%'`;
      return waiting.length > 0;
    });
    expect(answered).toBeNull();
    await free;
  });
  release();
  await blocking;
  await until("it is answered", () => answered === 200);
  expect(await stored(body)).not.toBeNull();
});

test("a customer that no row knows is taken in by what it says at Stripe; nobody's is ignored", async () => {
  const { user, customer } = await makeBuyer(shop, false);
  buy(shop, customer, "pro monthly");
  await shop.settled();
  expect(await planOf(user)).toBe("pro");
  expect([...(await shop.sql`select customer_id from stripe_customers where user_id = ${user.id}`)]).toEqual([
    { customerId: customer },
  ] as never);
  for (const metadata of [{}, { user_id: "17" }, { user_id: newId() }]) {
    const stranger = createCustomer(shop.stripe.account(), { email: "else@example.org", metadata }).id;
    buy(shop, stranger, "pro monthly");
    await shop.settled();
    const outcomes = await shop.sql`
      select distinct outcome from stripe_events where customer_id = ${stranger} and outcome <> 'ignored: type'`;
    expect(outcomes.map(({ outcome }) => outcome)).toEqual(["ignored: unknown customer"]);
  }
});

test("a second customer for somebody who has one is not taken in, and is alarmed", async () => {
  const { user, customer } = await makeBuyer(shop);
  const second = createCustomer(shop.stripe.account(), { metadata: { user_id: user.id } }).id;
  buy(shop, second, "premium monthly");
  await shop.settled();
  expect(await planOf(user)).toBe("free");
  expect([...(await shop.sql`select customer_id from stripe_customers where user_id = ${user.id}`)]).toEqual([
    { customerId: customer },
  ] as never);
  const alarmed = (line: string) => line.includes('"level":"error"') && line.includes(second);
  await until("it is alarmed", () => shop.reef.logs.some(alarmed));
});

test("without a key or a secret nothing is taken", async () => {
  for (const env of [{}, { STRIPE_SECRET_KEY: "sk_test_x" }, { STRIPE_WEBHOOK_SECRETS: "whsec_reef" }]) {
    const reef = await startTestReef(env as Record<string, string>);
    try {
      const body = event();
      const answer = await call(reef.url, "POST", "/api/webhooks/stripe", body, undefined, {
        "stripe-signature": sign(body),
      });
      expect([answer.status, answer.body.code]).toEqual([503, "billing_not_configured"]);
      expect((await makeUser(reef)).token).toBeTruthy();
    } finally {
      await reef.stop();
    }
  }
});
