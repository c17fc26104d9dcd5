import { afterAll, beforeAll, expect, test } from "bun:test";
import { makeUser, type TestUser } from "../factories.ts";
import type { Fault } from "../fakes/stripeRequests.ts";
import {
  checkout,
  customerOf,
  idIn,
  liveSubscriptions,
  lookLater,
  makeSubscriber,
  openSessions,
  openShop,
  subscription,
  type Shop,
} from "./storefront.ts";

let shop: Shop;
beforeAll(async () => void (shop = await openShop()));
afterAll(() => shop.close());

const FAULTS: Record<string, Fault> = {
  "429": { status: 429, retryAfter: 17 },
  "500 before": { status: 500 },
  "500 after": { status: 500, afterWork: true },
  "cut before": { cut: "beforeWork" },
  "cut after": { cut: "afterWork" },
};
const post = (user: TestUser, what: string) => user.call("POST", `/api/subscription/${what}`);

/** Fails call number `n` from now on, once; says whether there was such a call. */
function failCall(n: number, fault: Fault): () => boolean {
  let seen = 0;
  shop.stripe.fault = () => (seen++ === n ? fault : null);
  return () => {
    shop.stripe.fault = null;
    return seen > n;
  };
}

async function expectRefused(answer: Awaited<ReturnType<typeof checkout>>, name: string): Promise<void> {
  expect([name, answer.status, answer.body.code]).toEqual([name, 503, "billing_unavailable"]);
  const wait = Number(answer.headers.get("retry-after"));
  expect(answer.body.retry_after).toBe(wait);
  if (name === "429") expect(wait).toBe(17);
  else expect(wait).toBeGreaterThan(0);
  // Nothing of Stripe's own words or names.
  expect(JSON.stringify(answer.body)).not.toMatch(/stripe|unknown error|rate limit|req_/i);
}

for (const [name, fault] of Object.entries(FAULTS)) {
  test(`${name} at any call of a first checkout: a clear no, and the next try makes it right`, async () => {
    for (let n = 0; ; n++) {
      const user = await makeUser(shop.reef);
      const happened = failCall(n, fault);
      const answer = await checkout(user, "pro");
      if (!happened()) break;
      // What was only cut off may have been asked again below us.
      if (answer.status !== 200 || !name.startsWith("cut")) await expectRefused(answer, name);
      const { status, body } = await checkout(user, "pro");
      expect(status).toBe(200);
      const customer = await customerOf(shop, user);
      const mine = Object.values(shop.stripe.account().objects.customers).filter((one) => one.email === user.email);
      expect(mine.map(({ id }) => id)).toEqual([customer]);
      expect(openSessions(shop, customer).map(({ id }) => id)).toEqual([idIn(body.checkout_url)]);
      expect(n).toBeLessThan(20);
    }
  });

  // To us a 429 and a 500 before the work are the same from here on.
  if (name === "429" || name === "500 before") continue;

  test(`${name} at any call of a change to another plan: one checkout in the end, one subscription when it is paid`, async () => {
    for (let n = 0; ; n++) {
      const user = await makeUser(shop.reef);
      const first = (await checkout(user, "pro")).body.checkout_url;
      shop.stripe.completeCheckout(idIn(first), { card: "declined" });
      const happened = failCall(n, fault);
      const answer = await checkout(user, "premium");
      if (!happened()) break;
      // What failed after its work may have been all that was needed.
      if (answer.status !== 200) await expectRefused(answer, name);
      const { body } = await checkout(user, "premium");
      const customer = await customerOf(shop, user);
      expect(openSessions(shop, customer).map(({ id }) => id)).toEqual([idIn(body.checkout_url)]);
      expect(liveSubscriptions(shop, customer)).toEqual([]);
      shop.stripe.completeCheckout(idIn(body.checkout_url));
      expect(await lookLater(shop, user)).toMatchObject({ plan: "premium", status: "active" });
      expect(liveSubscriptions(shop, customer).length).toBe(1);
      expect(n).toBeLessThan(30);
    }
  });

  test(`${name} at any call of cancel, resume and portal: repeated, it is done, and the row says so`, async () => {
    for (const what of ["cancel", "resume", "portal"]) {
      for (let n = 0; ; n++) {
        const user = await makeSubscriber(shop);
        if (what === "resume") await post(user, "cancel");
        const happened = failCall(n, fault);
        const answer = await post(user, what);
        if (!happened()) break;
        if (answer.status !== 200 || !name.startsWith("cut")) await expectRefused(answer, name);
        const again = await post(user, what);
        expect([what, n, again.status]).toEqual([what, n, 200]);
        const ends = liveSubscriptions(shop, await customerOf(shop, user))[0]!.endsAt !== null;
        expect([again.body.cancel_at_period_end ?? false, ends]).toEqual([what === "cancel", what === "cancel"]);
        expect(n).toBeLessThan(20);
      }
    }
  });
}

test("a Stripe that never answers: refused within the time for it, not for ever; a look shows what is known", async () => {
  const user = await makeSubscriber(shop);
  shop.stripe.fault = () => ({ hang: "beforeWork" });
  await shop.reef.sql`update stripe_customers set asked_at = null where user_id = ${user.id}`;
  const [look, answer] = await Promise.all([subscription(user), checkout(user, "premium")]);
  shop.stripe.fault = null;
  expect(look).toMatchObject({ plan: "pro", status: "active" });
  await expectRefused(answer, "hang");
  expect((await checkout(user, "premium")).status).toBe(200);
});

test("a key that Stripe refuses: a clear no for people, an error with Stripe's name of the request for operators", async () => {
  const user = await makeUser(shop.reef);
  shop.stripe.fault = () => ({ status: 401 });
  await expectRefused(await checkout(user, "pro"), "401");
  shop.stripe.fault = null;
  const line = shop.reef.logs.find(
    (one) => one.includes("Stripe did not do what it was asked") && one.includes('"status":401'),
  );
  expect(JSON.parse(line!)).toMatchObject({ level: "error", user_id: user.id, status: 401 });
  for (const one of shop.reef.logs) expect(one).not.toMatch(new RegExp(`${shop.stripe.secretKey}|c/pay|p/session`));
});
