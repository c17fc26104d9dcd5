import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import Stripe from "stripe";
import { startFakeStripe, type FakeStripe } from "../fakes/stripe.ts";
import { outOfOrder, shuffled } from "../fakes/stripeWebhooks.ts";

const SECRETS = ["whsec_old", "whsec_new"];

interface Got {
  id: string;
  type: string;
  body: string;
  signature: string;
}

let fake: FakeStripe;
let stripe: Stripe;
let got: Got[];
/** What the endpoint answers, by how many it has had. */
let answer: (count: number) => number;
let endpoint: ReturnType<typeof Bun.serve>;

beforeEach(async () => {
  got = [];
  answer = () => 200;
  endpoint = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    async fetch(request) {
      const body = await request.text();
      const { id, type } = JSON.parse(body) as { id: string; type: string };
      got.push({ id, type, body, signature: request.headers.get("stripe-signature") ?? "" });
      return new Response(null, { status: answer(got.length) });
    },
  });
  fake = await startFakeStripe({ deliverTo: `http://127.0.0.1:${endpoint.port}/hook`, webhookSecrets: SECRETS });
  fake.webhooks.retryMs = [5, 5];
  const { hostname, port } = new URL(fake.apiBase);
  stripe = new Stripe(fake.secretKey, { host: hostname, port, protocol: "http", telemetry: false });
});
afterEach(async () => {
  await fake.close();
  await endpoint.stop(true);
});

const make = (email: string) => stripe.customers.create({ email });
const emails = () =>
  got.map(({ body }) => (JSON.parse(body) as Stripe.Event).data.object as Stripe.Customer).map((one) => one.email);
const types = () => got.map(({ type }) => type);

describe("signatures", () => {
  test("every secret signs; the package agrees, now, and for each of them", async () => {
    await make("a@example.org");
    await fake.webhooks.settled();
    for (const secret of SECRETS) {
      const event = await stripe.webhooks.constructEventAsync(got[0]!.body, got[0]!.signature, secret);
      expect(event).toMatchObject({ id: got[0]!.id, type: "customer.created", livemode: false });
    }
    const forged = stripe.webhooks.constructEventAsync(
      got[0]!.body.replace("a@", "b@"),
      got[0]!.signature,
      "whsec_new",
    );
    expect(await forged.catch((error: unknown) => error)).toBeInstanceOf(
      Stripe.errors.StripeSignatureVerificationError,
    );
    const strange = stripe.webhooks.constructEventAsync(got[0]!.body, got[0]!.signature, "whsec_other");
    expect(await strange.catch((error: unknown) => error)).toBeInstanceOf(
      Stripe.errors.StripeSignatureVerificationError,
    );
  });

  test("what it signs is what the package signs; a stale one is refused", async () => {
    const timestamp = Math.floor(Date.now() / 1000) - 3600;
    const payload = '{"id":"evt_1","object":"event"}';
    const own = fake.webhooks.sign(payload, { secrets: ["whsec_new"], timestamp });
    expect(own).toBe(await stripe.webhooks.generateTestHeaderStringAsync({ payload, secret: "whsec_new", timestamp }));
    const stale = stripe.webhooks.constructEventAsync(payload, own, "whsec_new");
    expect(String(await stale.catch((error: unknown) => error))).toContain("tolerance");
  });
});

describe("delivery", () => {
  test("at once, in order", async () => {
    for (const email of ["a@x.org", "b@x.org", "c@x.org"]) await make(email);
    await fake.webhooks.settled();
    expect(emails()).toEqual(["a@x.org", "b@x.org", "c@x.org"]);
    expect(fake.webhooks.tries.map(({ status }) => status)).toEqual([200, 200, 200]);
  });

  test("twice, dropped, late, out of order", async () => {
    fake.webhooks.policy = () => ({ copies: 2 });
    await make("a@x.org");
    fake.webhooks.policy = () => "drop";
    await make("b@x.org");
    fake.webhooks.policy = ({ type }) => (type === "customer.created" ? { delayMs: 400 } : "send");
    await make("c@x.org");
    await stripe.products.create({ name: "Pro" });
    await fake.webhooks.settled();
    expect(types()).toEqual(["customer.created", "customer.created", "product.created", "customer.created"]);
    expect(got[0]!.id).toBe(got[1]!.id);
    got.length = 0;
    const waits = [0.9, 0, 0.5];
    fake.webhooks.policy = outOfOrder(700, () => waits.shift()!);
    for (const email of ["d@x.org", "e@x.org", "f@x.org"]) fake.emitUnrelated("customer.created", { email });
    await fake.webhooks.settled();
    expect(emails()).toEqual(["e@x.org", "f@x.org", "d@x.org"]);
  });

  test("held back until told, then in any order", async () => {
    fake.webhooks.policy = () => "hold";
    for (const email of ["a@x.org", "b@x.org", "c@x.org"]) await make(email);
    await fake.webhooks.settled();
    expect([got.length, fake.webhooks.held.length]).toEqual([0, 3]);
    await fake.webhooks.release((events) => events.toReversed());
    expect(emails()).toEqual(["c@x.org", "b@x.org", "a@x.org"]);
    expect(fake.webhooks.held).toEqual([]);
    const numbers = [1, 2, 3, 4, 5, 6, 7, 8];
    expect(new Set(shuffled(numbers))).toEqual(new Set(numbers));
    const seeded = () =>
      shuffled(
        numbers,
        (
          (seed) => () =>
            (seed = (seed * 16_807) % 2_147_483_647) / 2_147_483_647
        )(7),
      );
    expect(seeded()).toEqual(seeded());
  });

  test("tried again until it is taken, then given up; others wait for none of that", async () => {
    answer = (count) => (count < 3 ? 500 : 200);
    await make("a@x.org");
    await fake.webhooks.settled();
    expect(fake.webhooks.tries.map(({ status }) => status)).toEqual([500, 500, 200]);
    expect(new Set(got.map(({ id }) => id)).size).toBe(1);
    answer = () => 302;
    fake.webhooks.tries.length = 0;
    await make("b@x.org");
    await fake.webhooks.settled();
    expect(fake.webhooks.tries.map(({ status }) => status)).toEqual([302, 302, 302]);
    await endpoint.stop(true);
    fake.webhooks.tries.length = 0;
    await make("c@x.org");
    await fake.webhooks.settled();
    expect(fake.webhooks.tries.map(({ status }) => status)).toEqual([null, null, null]);
  });

  test("an old one comes again months later: the same event, signed today", async () => {
    await make("a@x.org");
    fake.advance({ months: 5 });
    const [old] = (await stripe.events.list({ type: "customer.created" })).data;
    await fake.webhooks.replay(fake.account().objects.events[old!.id]!);
    expect(got[1]!.body).toBe(got[0]!.body);
    const event = await stripe.webhooks.constructEventAsync(got[1]!.body, got[1]!.signature, "whsec_old");
    expect(event.created).toBe(old!.created);
  });

  test("only the types that an endpoint wants, only its mode, several endpoints", async () => {
    fake.webhooks.endpoints[0]!.events = ["product.created"];
    fake.webhooks.endpoints.push({
      ...fake.webhooks.endpoints[0]!,
      events: ["customer.created"],
      secrets: ["whsec_b"],
    });
    await make("a@x.org");
    await stripe.products.create({ name: "Pro" });
    const { hostname, port } = new URL(fake.apiBase);
    const live = new Stripe(fake.liveKey, { host: hostname, port, protocol: "http", telemetry: false });
    await live.customers.create({});
    await fake.webhooks.settled();
    expect(types()).toEqual(["customer.created", "product.created"]);
    expect(got[0]!.signature.split("v1=").length).toBe(2);
  });

  test("an endpoint that never answers does not keep the server from closing", async () => {
    const { promise, resolve } = Promise.withResolvers<Response>();
    const deaf = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => promise });
    fake.webhooks.endpoints[0]!.url = `http://127.0.0.1:${deaf.port}`;
    await make("a@x.org");
    await fake.close();
    resolve(new Response());
    await deaf.stop(true);
    expect(fake.webhooks.tries.map(({ status }) => status)).toEqual([null]);
  });
});
