import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import Stripe from "stripe";
import { startFakeStripe, type FakeStripe } from "../fakes/stripe.ts";
import { API_VERSION } from "../fakes/stripeApiChanges.ts";
import { OPERATIONS } from "../fakes/stripeParams.ts";
import { ROUTES } from "../fakes/stripeRoutes.ts";
import { until } from "../harness.ts";

let fake: FakeStripe;
let stripe: Stripe;

function clientOf(key: string, options: { timeout?: number } = {}): Stripe {
  const { hostname, port } = new URL(fake.apiBase);
  return new Stripe(key, {
    host: hostname,
    port,
    protocol: "http",
    maxNetworkRetries: 0,
    telemetry: false,
    ...options,
  });
}

beforeEach(async () => {
  fake = await startFakeStripe();
  stripe = clientOf(fake.secretKey);
});
afterEach(() => fake.close());

/** What a call is refused with; fails when it succeeds. */
async function refusal(call: Promise<unknown>): Promise<Stripe.errors.StripeError> {
  const outcome = await call.then(
    () => new Error("it was not refused"),
    (reason: unknown) => reason,
  );
  if (!(outcome instanceof Stripe.errors.StripeError)) throw outcome;
  return outcome;
}

/** A request as nobody's types would allow it. */
function post(path: string, form: Record<string, string>, headers: Record<string, string> = {}) {
  return fetch(`${fake.apiBase}${path}`, {
    method: "POST",
    headers: { authorization: `Bearer ${fake.secretKey}`, ...headers },
    body: new URLSearchParams(form),
  });
}

async function errorOf(response: Response) {
  const { error } = (await response.json()) as {
    error: { type: string; code?: string; param?: string; message: string };
  };
  return { status: response.status, ...error };
}

const makePrice = (extra: Partial<Stripe.PriceCreateParams> = {}) =>
  stripe.prices.create({
    product_data: { name: "Pro" },
    currency: "usd",
    unit_amount: 699,
    recurring: { interval: "month" },
    ...extra,
  });

test("every operation that is described is answered, and no other", () => {
  expect(Object.keys(ROUTES).toSorted()).toEqual(Object.keys(OPERATIONS).toSorted());
});

describe("keys", () => {
  test("a wrong key, or none, is 401", async () => {
    const wrong = await refusal(clientOf("sk_test_somebody_else").customers.list());
    expect(wrong).toMatchObject({ type: "StripeAuthenticationError", statusCode: 401 });
    expect(wrong.message).not.toContain("somebody");
    const none = await fetch(`${fake.apiBase}/v1/customers`);
    expect(await errorOf(none)).toMatchObject({ status: 401, type: "invalid_request_error" });
  });

  test("test and live know nothing of each other", async () => {
    const live = clientOf(fake.liveKey);
    const { id, livemode } = await live.customers.create({ email: "live@example.org" });
    expect(livemode).toBe(true);
    const unknown = await refusal(stripe.customers.retrieve(id));
    expect(unknown).toMatchObject({ statusCode: 404, code: "resource_missing" });
    expect(unknown.message).toContain("a similar object exists in live mode, but a test mode key was used");
    expect((await stripe.customers.list()).data).toEqual([]);
    expect((await live.events.list()).data.map((event) => event.livemode)).toEqual([true]);
  });
});

describe("parameters are those of Stripe's description", () => {
  test("an unknown one, also deep inside", async () => {
    expect(await errorOf(await post("/v1/customers", { mail: "a@example.org" }))).toMatchObject({
      status: 400,
      type: "invalid_request_error",
      code: "parameter_unknown",
      param: "mail",
      message: "Received unknown parameter: mail",
    });
    const deep = { mode: "subscription", success_url: "https://a.example", "line_items[0][prize]": "price_1" };
    expect(await errorOf(await post("/v1/checkout/sessions", deep))).toMatchObject({ param: "line_items[0][prize]" });
    const query = await fetch(`${fake.apiBase}/v1/customers?mail=a`, {
      headers: { authorization: `Bearer ${fake.secretKey}` },
    });
    expect(await errorOf(query)).toMatchObject({ status: 400, code: "parameter_unknown" });
  });

  test("a missing one, a wrong type, a choice that is none, an empty and a long text", async () => {
    const cases: [string, Record<string, string>, Record<string, string>][] = [
      ["/v1/products", {}, { code: "parameter_missing", param: "name" }],
      [
        "/v1/prices",
        { currency: "usd", unit_amount: "6.99" },
        { code: "parameter_invalid_integer", param: "unit_amount" },
      ],
      ["/v1/products", { name: "a", active: "yes" }, { param: "active", message: "Invalid boolean: yes" }],
      ["/v1/prices", { currency: "usd", "recurring[interval]": "moon" }, { param: "recurring[interval]" }],
      ["/v1/products", { name: "" }, { code: "parameter_invalid_empty", param: "name" }],
      ["/v1/products", { name: "x".repeat(6000) }, { param: "name" }],
      ["/v1/customers", { metadata: "hello" }, { param: "metadata" }],
      ["/v1/customers", { "metadata[a]": "x".repeat(501) }, { param: "metadata[a]" }],
      ["/v1/customers", { [`metadata[${"k".repeat(41)}]`]: "x" }, { param: `metadata[${"k".repeat(41)}]` }],
      ["/v1/checkout/sessions", { line_items: "hello" }, { param: "line_items" }],
    ];
    for (const [path, form, expected] of cases)
      expect(await errorOf(await post(path, form))).toMatchObject({
        status: 400,
        type: "invalid_request_error",
        ...expected,
      });
    expect(fake.account().objects.products).toEqual({});
  });

  test("what the SDK's version took away is refused, what it brought is accepted", async () => {
    const price = await makePrice();
    const form = { mode: "subscription", success_url: "https://a.example", "line_items[0][price]": price.id };
    const old = await post("/v1/checkout/sessions", { ...form, "payment_method_types[0]": "card" });
    expect(await errorOf(old)).toMatchObject({ code: "parameter_unknown" });
    const session = await stripe.checkout.sessions.create({
      mode: "subscription",
      line_items: [{ price: price.id, quantity: 1 }],
      success_url: "https://a.example",
      allowed_payment_method_types: ["card"],
      subscription_data: { billing_mode: { type: "classic" } },
      ui_mode: "hosted_page",
    });
    expect(session.url).toContain(fake.url);
  });

  test("references and addresses that lead nowhere", async () => {
    const price = await makePrice();
    const input = { mode: "subscription" as const, line_items: [{ price: price.id, quantity: 1 }] };
    const { sessions } = stripe.checkout;
    const stranger = sessions.create({ ...input, customer: "cus_unknown", success_url: "https://a.example" });
    expect(await refusal(stranger)).toMatchObject({ statusCode: 400, code: "resource_missing", param: "customer" });
    for (const success_url of ["done", "javascript://%0aalert(1)"])
      expect(await refusal(sessions.create({ ...input, success_url }))).toMatchObject({ code: "url_invalid" });
    const late = sessions.create({ ...input, success_url: "reef://done", expires_at: fake.now() + 60 });
    expect(await refusal(late)).toMatchObject({ param: "expires_at" });
    await stripe.prices.update(price.id, { active: false });
    const sold = sessions.create({ ...input, success_url: "reef://done" });
    expect(await refusal(sold)).toMatchObject({ param: "line_items[0][price]" });
    expect(await refusal(stripe.customers.retrieve("cus_unknown"))).toMatchObject({ statusCode: 404, param: "id" });
    expect(await refusal(stripe.customers.retrieve("constructor"))).toMatchObject({ statusCode: 404 });
  });

  test("a path that Stripe does not have", async () => {
    expect(await errorOf(await post("/v1/moneys", {}))).toMatchObject({ status: 404, type: "invalid_request_error" });
  });
});

describe("idempotency", () => {
  test("the same request gets the same answer, and is done once", async () => {
    const create = () => stripe.customers.create({ email: "a@example.org" }, { idempotencyKey: "once" });
    const [first, second] = [await create(), await create()];
    expect(second.id).toBe(first.id);
    expect(fake.requests.map(({ replayed }) => replayed)).toEqual([false, true]);
    expect((await stripe.customers.list()).data.length).toBe(1);
  });

  test("other parameters or another path under the same key are refused", async () => {
    await stripe.customers.create({ email: "a@example.org" }, { idempotencyKey: "once" });
    const other = await refusal(stripe.customers.create({ email: "b@example.org" }, { idempotencyKey: "once" }));
    expect(other).toMatchObject({ type: "StripeIdempotencyError", statusCode: 400 });
    const elsewhere = await refusal(stripe.products.create({ name: "a" }, { idempotencyKey: "once" }));
    expect(elsewhere).toMatchObject({ type: "StripeIdempotencyError" });
    expect(
      await clientOf(fake.liveKey).customers.create({ email: "b@example.org" }, { idempotencyKey: "once" }),
    ).toBeDefined();
  });

  test("while the first is under way the second is 409", async () => {
    const held = Promise.withResolvers<void>();
    fake.failNext({ until: held.promise });
    const first = stripe.customers.create({}, { idempotencyKey: "twice" });
    await until("the first has come", () => fake.requests.length === 1);
    const second = await refusal(stripe.customers.create({}, { idempotencyKey: "twice" }));
    expect(second).toMatchObject({ statusCode: 409, code: "idempotency_key_in_use" });
    held.resolve();
    await first;
    expect((await stripe.customers.list()).data.length).toBe(1);
  });

  test("a refusal of the parameters is not kept, one of the work is; after a day all is forgotten", async () => {
    const bad = await post("/v1/customers", { mail: "a" }, { "idempotency-key": "k" });
    expect(bad.status).toBe(400);
    expect((await post("/v1/customers", { email: "a@example.org" }, { "idempotency-key": "k" })).status).toBe(200);
    const pay = () => stripe.refunds.create({ charge: "ch_unknown" }, { idempotencyKey: "r" });
    await refusal(pay());
    expect((await refusal(pay())).headers?.["idempotent-replayed"]).toBe("true");
    fake.advance({ days: 1, seconds: 1 });
    const later = await stripe.customers.create({ email: "b@example.org" }, { idempotencyKey: "k" });
    expect(later.email).toBe("b@example.org");
  });

  test("a key that is too long is refused", async () => {
    const long = stripe.customers.create({}, { idempotencyKey: "k".repeat(256) });
    expect(await refusal(long)).toMatchObject({ statusCode: 400 });
  });

  test("a key on a deletion means nothing", async () => {
    const { id } = await stripe.customers.create({});
    await stripe.customers.del(id, {}, { idempotencyKey: "d" });
    const again = await refusal(stripe.customers.del(id, {}, { idempotencyKey: "d" }));
    expect(again).toMatchObject({ statusCode: 404 });
    expect(fake.requests.at(-1)).toMatchObject({ method: "DELETE", idempotencyKey: "d", status: 404 });
  });
});

describe("lists", () => {
  test("pages go on where the last one ended, newest first", async () => {
    const made: string[] = [];
    for (let n = 0; n < 25; n++) made.unshift((await stripe.customers.create({ email: `${n % 2}@example.org` })).id);
    const all = await stripe.customers.list({ limit: 10 }).autoPagingToArray({ limit: 100 });
    expect(all.map(({ id }) => id)).toEqual(made);
    const first = await stripe.customers.list({ limit: 10 });
    expect([first.data.length, first.has_more]).toEqual([10, true]);
    const last = await stripe.customers.list({ limit: 10, starting_after: made[19]! });
    expect([last.data.length, last.has_more]).toEqual([5, false]);
    const before = await stripe.customers.list({ limit: 3, ending_before: made[10]! });
    expect(before.data.map(({ id }) => id)).toEqual(made.slice(7, 10));
    expect((await stripe.customers.list({ email: "0@example.org", limit: 100 })).data.length).toBe(13);
    expect(await refusal(stripe.customers.list({ limit: 101 }))).toMatchObject({ param: "limit" });
    expect(await refusal(stripe.customers.list({ starting_after: "cus_unknown" }))).toMatchObject({ statusCode: 400 });
  });

  test("prices by lookup key; a key moves only when it is told to", async () => {
    const first = await makePrice({ lookup_key: "pro_month" });
    expect((await stripe.prices.list({ lookup_keys: ["pro_month", "other"] })).data.map(({ id }) => id)).toEqual([
      first.id,
    ]);
    expect(await refusal(makePrice({ lookup_key: "pro_month" }))).toMatchObject({ param: "lookup_key" });
    const second = await makePrice({ lookup_key: "pro_month", transfer_lookup_key: true });
    expect((await stripe.prices.list({ lookup_keys: ["pro_month"] })).data.map(({ id }) => id)).toEqual([second.id]);
    expect((await stripe.prices.retrieve(first.id)).lookup_key).toBe(null);
    expect(String(first.unit_amount_decimal)).toBe("699");
    await stripe.products.update(first.product as string, { active: false, name: "Old" });
    expect((await stripe.products.list({ active: true })).data.length).toBe(1);
    expect(await refusal(stripe.products.del(first.product as string))).toMatchObject({ statusCode: 400 });
  });

  test("expansion: at most four levels, only what can be expanded, and what is only there when asked for", async () => {
    const customer = fake.plantSubscription("sub_planted");
    const { data } = await stripe.subscriptions.list({
      customer,
      expand: ["data.latest_invoice.payments", "data.customer", "data.items.data.price"],
    });
    const invoice = data[0]!.latest_invoice as Stripe.Invoice;
    expect(invoice.payments?.data[0]?.status).toBe("paid");
    expect((data[0]!.customer as Stripe.Customer).id).toBe(customer);
    const one = await stripe.subscriptions.retrieve("sub_planted", { expand: ["items.data.price.product"] });
    expect((one.items.data[0]!.price.product as Stripe.Product).name).toBe("Planted");
    const tooDeep = stripe.subscriptions.list({ expand: ["data.items.data.price.product"] });
    expect((await refusal(tooDeep)).message).toContain("more than 4 levels");
    const odd = stripe.subscriptions.retrieve("sub_planted", { expand: ["colour"] });
    expect((await refusal(odd)).message).toContain("This property cannot be expanded (colour)");
  });
});

describe("trouble", () => {
  test("429 and 500, once or always", async () => {
    fake.failNext({ status: 429, retryAfter: 2 }, ({ path }) => path === "/v1/customers");
    await stripe.products.list();
    const limited = await refusal(stripe.customers.list());
    expect(limited).toMatchObject({ type: "StripeRateLimitError", code: "rate_limit" });
    await stripe.customers.list();
    fake.fault = ({ method }) => (method === "POST" ? { status: 500 } : null);
    expect(await refusal(stripe.customers.create({}))).toMatchObject({ type: "StripeAPIError", statusCode: 500 });
    expect((await stripe.customers.list()).data).toEqual([]);
  });

  test("a connection that is cut before or after the work: the same key finds out which", async () => {
    for (const when of ["beforeWork", "afterWork"] as const) {
      fake.failNext({ cut: when });
      const create = () => stripe.customers.create({ email: `${when}@example.org` }, { idempotencyKey: when });
      expect(await refusal(create())).toMatchObject({ type: "StripeConnectionError" });
      const done = (await stripe.customers.list({ email: `${when}@example.org` })).data.length;
      expect(done).toBe(when === "afterWork" ? 1 : 0);
      await create();
      expect(fake.requests.at(-1)!.replayed).toBe(when === "afterWork");
      expect((await stripe.customers.list({ email: `${when}@example.org` })).data.length).toBe(1);
    }
  });

  test("an answer 500 after the work; one that never comes", async () => {
    fake.failNext({ status: 500, afterWork: true });
    await refusal(stripe.customers.create({}));
    expect((await stripe.customers.list()).data.length).toBe(1);
    fake.failNext({ hang: "beforeWork" });
    const impatient = clientOf(fake.secretKey, { timeout: 100 });
    expect(await refusal(impatient.customers.create({}))).toMatchObject({ type: "StripeConnectionError" });
    expect((await stripe.customers.list()).data.length).toBe(1);
  });

  test("every request is on record, with its version and its id", async () => {
    const made = await stripe.customers.create({ metadata: { user: "u1" } }, { idempotencyKey: "k" });
    expect(fake.requests.at(-1)).toMatchObject({
      id: made.lastResponse.requestId,
      method: "POST",
      path: "/v1/customers",
      params: { metadata: { user: "u1" } },
      idempotencyKey: "k",
      live: false,
      apiVersion: API_VERSION,
      status: 200,
    });
    const [event] = (await stripe.events.list({ type: "customer.created" })).data;
    expect(event!.request).toEqual({ id: made.lastResponse.requestId, idempotency_key: "k" });
  });
});

test("metadata is merged, an empty value takes its key away; updates say what was before", async () => {
  const { id } = await stripe.customers.create({ metadata: { a: "1", b: "2" }, email: "a@example.org" });
  const changed = await stripe.customers.update(id, { metadata: { b: "", c: "3" }, email: "b@example.org" });
  expect(changed.metadata).toEqual({ a: "1", c: "3" });
  const [event] = (await stripe.events.list({ types: ["customer.updated"] })).data;
  expect(event!.data.previous_attributes).toMatchObject({ email: "a@example.org", metadata: { b: "2" } });
  expect((await stripe.events.retrieve(event!.id)).type).toBe("customer.updated");
});

test("the portal: a configuration of one's own, a flow of its own", async () => {
  const customer = fake.plantSubscription("sub_planted");
  const price = await makePrice();
  const configuration = await stripe.billingPortal.configurations.create({
    features: {
      subscription_cancel: { enabled: true, mode: "immediately" },
      subscription_update: {
        enabled: true,
        default_allowed_updates: ["price"],
        products: [{ product: price.product as string, prices: [price.id] }],
      },
    },
  });
  const session = await stripe.billingPortal.sessions.create({
    customer,
    configuration: configuration.id,
    return_url: "https://app.example.org",
    flow_data: { type: "subscription_cancel", subscription_cancel: { subscription: "sub_planted" } },
  });
  expect(session.flow?.subscription_cancel?.subscription).toBe("sub_planted");
  const strange = stripe.billingPortal.sessions.create({
    customer,
    flow_data: { type: "subscription_cancel", subscription_cancel: { subscription: "sub_other" } },
  });
  expect(await refusal(strange)).toMatchObject({ code: "resource_missing" });
  fake.portal.cancel("sub_planted");
  expect(fake.statusOf("sub_planted")).toBe("canceled");
});
