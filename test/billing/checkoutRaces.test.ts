import { afterAll, beforeAll, expect, test } from "bun:test";
import { resolve } from "node:path";
import { newId } from "../../src/lib/ids.ts";
import { call, makeUser, type Answer, type TestUser } from "../factories.ts";
import type { RecordedRequest } from "../fakes/stripeRequests.ts";
import { startProcess, until } from "../harness.ts";
import {
  checkout,
  customerOf,
  idIn,
  liveSubscriptions,
  lookLater,
  makeSubscriber,
  openSessions,
  openShop,
  type Shop,
} from "./storefront.ts";

let shop: Shop;
let second: Awaited<ReturnType<typeof startProcess>>;
const close: (() => unknown)[] = [];
beforeAll(async () => {
  shop = await openShop();
  second = await startProcess(shop.env);
});
afterAll(async () => {
  for (const one of close) await one();
  await second.stop();
  await shop.close();
});

/** The same person by the other process. */
const buyAt = (url: string, user: TestUser, plan: string, cycle = "monthly") =>
  call(url, "POST", "/api/subscription/checkout", { plan, billing_cycle: cycle }, user.token);
const customersOf = (user: TestUser) =>
  Object.values(shop.stripe.account().objects.customers).filter(({ metadata }) => metadata["user_id"] === user.id);
const isPost = (path: string) => (request: RecordedRequest) => request.method === "POST" && request.path === path;
/** Who had the lease is dead, and its time is over. */
const passTime = (user: TestUser) => shop.reef.sql`update stripe_leases set until = now() where user_id = ${user.id}`;

async function expectOne(user: TestUser, url?: string): Promise<void> {
  const [customer, ...others] = customersOf(user);
  expect([others, customer!.id]).toEqual([[], await customerOf(shop, user)]);
  const open = openSessions(shop, customer!.id).map(({ id }) => id);
  expect(open.length).toBe(1);
  if (url !== undefined) expect(open).toEqual([idIn(url)]);
  expect(liveSubscriptions(shop, customer!.id)).toEqual([]);
}

test("twenty at once on two processes: one customer, one open checkout, the same address for all", async () => {
  const user = await makeUser(shop.reef);
  const answers = await Promise.all(
    Array.from({ length: 20 }, (_, n) => buyAt(n % 2 ? shop.reef.url : second.url, user, "pro")),
  );
  expect(answers.map(({ status }) => status)).toEqual(Array.from({ length: 20 }, () => 200));
  const urls = new Set(answers.map(({ body }) => body.checkout_url));
  expect(urls.size).toBe(1);
  await expectOne(user, [...urls][0]);
});

test("twenty at once for different plans: one customer, one open checkout, which was given to somebody", async () => {
  const user = await makeUser(shop.reef);
  const answers = await Promise.all(
    Array.from({ length: 20 }, (_, n) =>
      buyAt(n % 2 ? shop.reef.url : second.url, user, n % 3 ? "pro" : "premium", n % 5 ? "monthly" : "yearly"),
    ),
  );
  const given = answers.filter(({ status }) => status === 200).map(({ body }) => idIn(body.checkout_url));
  expect(given.length).toBeGreaterThan(0);
  for (const { status, body } of answers.filter((answer) => answer.status !== 200))
    expect([status, body.code]).toEqual([503, "billing_unavailable"]);
  await expectOne(user);
  const [open] = openSessions(shop, await customerOf(shop, user));
  expect(given).toContain(open!.id);
});

test("paid on one device while others ask for this plan and another: one subscription, whenever it is paid", async () => {
  for (let n = 0; n < 24; n++) {
    const round = Math.floor(n / 2);
    const user = await makeUser(shop.reef);
    const { checkout_url: url } = (await checkout(user, "pro")).body;
    const asking = Promise.all([
      buyAt(second.url, user, "premium"),
      // Alone, too: who comes next would put right what the first did wrong.
      ...(n % 2 ? [buyAt(shop.reef.url, user, "pro"), buyAt(second.url, user, "pro", "yearly")] : []),
    ]);
    // At each of the requests that the others make to Stripe, one round after the other.
    let seen = 0;
    shop.stripe.fault = () => {
      if (seen++ === round) payIfOpen(url);
      return null;
    };
    const answers = await asking;
    shop.stripe.fault = null;
    payIfOpen(url);
    for (const answer of answers) if (answer.status === 200) payIfOpen(answer.body.checkout_url);
    const customer = await customerOf(shop, user);
    expect([n, liveSubscriptions(shop, customer).length]).toEqual([n, 1]);
    expect(shop.stripe.truth(customer).charges.length).toBe(1);
  }
});

/** The person pays on a page that may have expired meanwhile. */
function payIfOpen(url: string): void {
  const session = shop.stripe.account().objects.checkoutSessions[idIn(url)];
  if (session?.status === "open") shop.stripe.completeCheckout(session.id);
}

test("cancelled and resumed at once on two processes: it is one of both, and the row says which", async () => {
  const user = await makeSubscriber(shop);
  const ask = (url: string, what: string) => call(url, "POST", `/api/subscription/${what}`, undefined, user.token);
  const answers = await Promise.all([
    ask(shop.reef.url, "cancel"),
    ask(second.url, "resume"),
    ask(second.url, "cancel"),
    ask(shop.reef.url, "resume"),
  ]);
  expect(answers.map(({ status }) => status)).toEqual([200, 200, 200, 200]);
  const [truth] = liveSubscriptions(shop, await customerOf(shop, user));
  expect((await lookLater(shop, user)).cancel_at_period_end).toBe(truth!.endsAt !== null);
});

/** A process of its own, that can be killed. */
async function startChild(): Promise<{ url: string; kill(): Promise<void> }> {
  const probe = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  const port = String(probe.port);
  probe.stop(true);
  const child = Bun.spawn([process.execPath, "--no-env-file", resolve(import.meta.dir, "../../src/main.ts")], {
    env: { PATH: process.env["PATH"] ?? "", ...shop.env, PORT: port },
    stdout: "ignore",
    stderr: "ignore",
  });
  const kill = async () => {
    child.kill("SIGKILL");
    await child.exited;
  };
  close.push(kill);
  const url = `http://127.0.0.1:${port}`;
  const answers = () =>
    fetch(`${url}/livez`).then(
      ({ ok }) => ok,
      () => false,
    );
  await until("the child answers", answers, 20_000);
  return { url, kill };
}

const CALLS = ["/v1/customers", "/v1/checkout/sessions"] as const;
for (const path of CALLS) {
  test(`killed between Stripe's answer to POST ${path} and what is kept of it: found again, no second one`, async () => {
    const user = await makeUser(shop.reef);
    const child = await startChild();
    const before = shop.stripe.requests.length;
    shop.stripe.failNext({ hang: "afterWork" }, isPost(path));
    const asked = buyAt(child.url, user, "pro").catch(() => null);
    await until("Stripe has done it", () => shop.stripe.requests.slice(before).some(isPost(path)));
    await child.kill();
    expect(await asked).toBeNull();
    await passTime(user);
    // More than a day later Stripe has forgotten the key; a session of yesterday has expired by itself.
    if (path === "/v1/customers") shop.stripe.advance({ hours: 30 });
    const { status, body } = await checkout(user, "pro");
    expect(status).toBe(200);
    await expectOne(user, body.checkout_url);
    expect(
      Object.values(shop.stripe.account().objects.checkoutSessions).filter(
        (one) => one.client_reference_id === user.id,
      ),
    ).toHaveLength(1);
  });
}

test("killed before the answer about another plan: what it left open is taken back", async () => {
  const user = await makeUser(shop.reef);
  await checkout(user, "pro");
  const child = await startChild();
  const before = shop.stripe.requests.length;
  shop.stripe.failNext({ hang: "afterWork" }, isPost("/v1/checkout/sessions"));
  const asked = buyAt(child.url, user, "premium").catch(() => null);
  await until("Stripe has done it", () => shop.stripe.requests.slice(before).some(isPost("/v1/checkout/sessions")));
  await child.kill();
  await asked;
  await passTime(user);
  const { body } = await checkout(user, "pro", "yearly");
  await expectOne(user, body.checkout_url);
});

test("somebody else is at it for too long: a clear answer with the time to wait, and nothing done", async () => {
  const user = await makeUser(shop.reef);
  await shop.reef.sql`insert into stripe_leases (user_id, token, until)
    values (${user.id}, ${newId()}, now() + interval '1 hour')`;
  const before = shop.stripe.requests.length;
  const answer = await checkout(user, "pro");
  expect([answer.status, answer.body.code]).toEqual([503, "billing_unavailable"]);
  expect(answer.body.retry_after).toBeGreaterThan(3500);
  expect(shop.stripe.requests.length).toBe(before);
  await passTime(user);
  await expectOne(user, (await checkout(user, "pro")).body.checkout_url);
});

test("who stood still until the lease was over takes back what it made, and gives it to nobody", async () => {
  const user = await makeUser(shop.reef);
  let other: Answer | undefined;
  const taken = Promise.withResolvers<void>();
  shop.stripe.failNext({ until: taken.promise }, (request) => {
    if (!isPost("/v1/checkout/sessions")(request)) return false;
    void passTime(user)
      .then(() => buyAt(second.url, user, "premium"))
      .then((answer) => (other = answer))
      .finally(taken.resolve);
    return true;
  });
  const late = await checkout(user, "pro");
  await taken.promise;
  expect([late.status, late.body.code, other?.status]).toEqual([503, "billing_unavailable", 200]);
  await expectOne(user, other!.body.checkout_url);
});
