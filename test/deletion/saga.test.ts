import { afterAll, beforeAll, expect, test } from "bun:test";
import { loadConfig } from "../../src/config.ts";
import { DELETION_STEPS, type Deletion } from "../../src/db/deletions.ts";
import { listen } from "../../src/db/notify.ts";
import { createDeps, type Deps } from "../../src/deps.ts";
import { newId } from "../../src/lib/ids.ts";
import type { Loop } from "../../src/lib/loop.ts";
import { createLog } from "../../src/lib/log.ts";
import { createDeletionSteps, startDeletions, type DeletionSteps } from "../../src/services/deletion.ts";
import { checkInvariants } from "../../src/services/invariants.ts";
import { sealAppleToken } from "../../src/services/appleTokens.ts";
import { leave } from "../../src/services/leaving.ts";
import { startReconciler } from "../../src/services/reconciler.ts";
import { makeAssistant, makeUser, type TestUser } from "../factories.ts";
import { startFakeIdentityProvider, type FakeIdentityProvider } from "../fakes/identityProvider.ts";
import { startFakeStripe, type FakeStripe } from "../fakes/stripe.ts";
import { createCheckout } from "../fakes/stripeCheckout.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";
import { listTablesOf } from "./search.ts";

/** Without the last, `done`, where nothing is left to do. */
const STEPS = DELETION_STEPS.slice(0, -1) as (keyof DeletionSteps)[];
const ORIGIN = { ip: "192.0.2.9", requestId: "test" };

let reef: TestReef;
let stripe: FakeStripe;
let deps: Deps;
let apple: FakeIdentityProvider;
interface Person {
  user: TestUser;
  customer: string;
  subscription: string;
  checkout: string;
}
const people: Person[] = [];
const close: (() => unknown)[] = [];
const running = new Set<Loop>();

// The processes have gone; what they would do is done here, by loops that can be held and let go of in mid-step.
beforeAll(async () => {
  stripe = await startFakeStripe();
  apple = await startFakeIdentityProvider("apple");
  reef = await startTestReef({ ...apple.env, STRIPE_SECRET_KEY: stripe.secretKey, STRIPE_API_BASE: stripe.apiBase });
  for (let n = 0; n < STEPS.length * 2 + 7; n++) {
    const user = await makeUser(reef);
    await makeAssistant(user);
    const bought = await subscribe(user);
    const refreshToken = `token of ${user.id}`;
    apple.refreshTokens.set(refreshToken, { subject: user.id, live: true });
    const sealed = sealAppleToken(reef.deps.config, { clientId: apple.clientId, refreshToken });
    await reef.sql`insert into identities (provider, subject, user_id, provider_token)
      values ('apple', ${user.id}, ${user.id}, ${sealed})`;
    people.push({ user, ...bought });
  }
  await reef.stopProcess();
  deps = createDeps(loadConfig(reef.env), createLog("silent"));
  const reconciler = startReconciler(deps);
  const wake = () => [reconciler, ...running].forEach((loop) => loop.wake());
  const unlisten = await listen(deps.sql, wake, wake);
  close.push(unlisten, () => reconciler.stop());
});
afterAll(async () => {
  await Promise.all([...running].map((loop) => loop.stop()));
  for (const one of close) await one();
  await deps.close();
  await reef.stop();
  await stripe.close();
  await apple.stop();
});

/** Somebody who pays, and has another checkout open. */
async function subscribe(user: TestUser): Promise<Omit<Person, "user">> {
  const subscription = `sub_${user.id}`;
  const customer = stripe.plantSubscription(subscription);
  const account = stripe.account();
  const [price] = account.objects.subscriptions[subscription]!.items.data.map((item) => item.price.id);
  const session = { mode: "subscription", customer, line_items: [{ price }], success_url: "https://example.org" };
  const { id: checkout } = createCheckout(account, session);
  await reef.sql.begin(async (sql) => {
    await sql`insert into stripe_customers (user_id, customer_id) values (${user.id}, ${customer})`;
    await sql`insert into subscriptions (user_id, plan, source, stripe_subscription_id)
      values (${user.id}, 'pro', 'stripe', ${subscription})`;
    // What a change of plan does is another test's.
    await sql`update users set applied_plan = 'pro' where id = ${user.id}`;
  });
  return { customer, subscription, checkout };
}

const next = () => people.pop() ?? expect.unreachable();
const ask = (user: TestUser) =>
  leave(deps, { kind: "user", userId: user.id, sessionId: newId(), expiresAt: 0 }, ORIGIN, {
    password: user.password,
    identity: null,
  });
const start = (change: (real: DeletionSteps) => Partial<DeletionSteps> = () => ({})): Loop => {
  const real = createDeletionSteps(deps);
  const loop = startDeletions(deps, { ...real, ...change(real) });
  running.add(loop);
  return loop;
};
const stop = async (loop: Loop) => {
  running.delete(loop);
  await loop.stop();
};
const rowOf = async (user: TestUser) => {
  const [row] = await deps.sql<
    { step: string; attempts: number; lastError: string | null; recipient: string | null }[]
  >`
    select step, attempts, last_error, recipient from account_deletions where user_id = ${user.id}`;
  return row!;
};
const reaches = (user: TestUser, step: string) =>
  until(`${user.id} is at ${step}`, async () => (await rowOf(user)).step === step, 20_000);
/** Its lease, or its pause after a failure, is over. */
const passTime = (user: TestUser) =>
  deps.sql`update account_deletions set next_attempt_at = now() where user_id = ${user.id} and finished_at is null`;

async function expectGone({ user, customer, subscription, checkout }: Person): Promise<void> {
  expect(await rowOf(user)).toEqual({ step: "done", attempts: 0, lastError: null, recipient: null });
  expect(await listTablesOf(deps.sql, user.id)).toEqual(["account_deletions"]);
  expect(stripe.statusOf(subscription)).toBe("canceled");
  expect(stripe.truth(customer).customer).toBe("deleted");
  const { checkoutSessions, invoices } = stripe.account().objects;
  expect(checkoutSessions[checkout]!.status).toBe("expired");
  expect(Object.values(invoices).filter((invoice) => invoice.customer === customer)).toHaveLength(1);
  expect(apple.refreshTokens.get(`token of ${user.id}`)?.live).toBe(false);
  const mails = await deps.sql`select 1 from outbox where recipient = ${user.email} and template = 'deletion-finished'`;
  expect(mails.length).toBe(1);
  const audits = await deps.sql`select action from audit_log
    where subject_user_id = ${user.id} and action not like 'subscription.%' order by id`;
  expect(audits.map((row) => row["action"])).toEqual([
    "account.signup",
    "account.deletion_requested",
    "account.deleted",
  ]);
}

for (const step of STEPS) {
  for (const when of ["before its work", "after its work, before its record is seen"] as const) {
    test(`a process that dies at "${step}" ${when}: another ends it the same, and the dead one's return changes nothing`, async () => {
      const person = next();
      const reached = Promise.withResolvers<void>();
      const back = Promise.withResolvers<void>();
      const over = Promise.withResolvers<void>();
      const dying = start((real) => ({
        [step]: async (deletion: Deletion) => {
          if (deletion.userId !== person.user.id) return real[step](deletion);
          const early = when === "before its work" ? null : await real[step](deletion);
          reached.resolve();
          await back.promise;
          // It stood still and comes back: does its work (again), with what it knew then.
          await real[step](deletion).finally(over.resolve);
          return early && null;
        },
      }));
      await ask(person.user);
      await reached.promise;
      running.delete(dying);
      const other = start();
      await passTime(person.user);
      other.wake();
      await reaches(person.user, "done");
      await expectGone(person);
      back.resolve();
      await over.promise;
      await dying.stop();
      await stop(other);
      await expectGone(person);
    });
  }
}

test("money first: while Stripe fails nothing else is done, nobody else waits, and nothing secret is kept", async () => {
  const [person, free] = [next(), next()];
  await deps.sql`delete from subscriptions where user_id = ${free.user.id}`;
  await deps.sql`delete from stripe_customers where user_id = ${free.user.id}`;
  stripe.fault = ({ method }) => (method === "DELETE" ? { status: 500 } : null);
  const loop = start();
  await ask(person.user);
  await until("it has failed", async () => (await rowOf(person.user)).attempts >= 1);
  await ask(free.user);
  await reaches(free.user, "done");
  expect(await rowOf(person.user)).toMatchObject({ step: "subscription", recipient: person.user.email });
  expect((await rowOf(person.user)).lastError).toMatch(/^Error\w* |^Stripe\w+( \d+)?$/);
  const [assistant] = await deps.sql`select status from assistants where user_id = ${person.user.id}`;
  expect(assistant!["status"]).toBe("active");
  stripe.fault = null;
  await passTime(person.user);
  loop.wake();
  await reaches(person.user, "done");
  await expectGone(person);
  // Stripe repeats its answer to a key for a day: each try after a failure has a key of its own.
  const keys = stripe.requests
    .filter(({ method, path }) => method === "DELETE" && path.endsWith(`/${person.subscription}`))
    .map(({ idempotencyKey }) => idempotencyKey);
  expect([keys.length >= 2, new Set(keys).size]).toEqual([true, keys.length]);
  await stop(loop);
});

test("a subscription that is cancelled or unknown already is done", async () => {
  const person = next();
  stripe.cancelNow(person.subscription);
  const loop = start();
  await ask(person.user);
  await reaches(person.user, "done");
  await expectGone(person);
  await stop(loop);
});

test("a provider that never takes its token back keeps nobody's data: given up after a while, and audited", async () => {
  const { user } = next();
  apple.trouble = "error";
  const loop = start();
  await ask(user);
  await until("it has failed", async () => (await rowOf(user)).attempts >= 1);
  await deps.sql`update account_deletions set attempts = 20, next_attempt_at = now() where user_id = ${user.id}`;
  loop.wake();
  await reaches(user, "done");
  apple.trouble = null;
  expect(await listTablesOf(deps.sql, user.id)).toEqual(["account_deletions"]);
  const audits = await deps.sql`select action from audit_log
    where subject_user_id = ${user.id} and action not like 'subscription.%' order by id`;
  expect(audits.map((row) => row["action"])).toContain("identity.revocation_failed");
  await stop(loop);
});

test("without the provider's key, or with a token that can't be read, the deletion does not wait at all", async () => {
  const [keyless, unreadable] = [next().user, next().user];
  await deps.sql`update identities set provider_token = ${Buffer.from("nonsense")} where user_id = ${unreadable.id}`;
  const loop = start((real) => {
    const without = createDeletionSteps({ ...deps, appleTokens: null });
    return { provider: (deletion) => (deletion.userId === keyless.id ? without : real).provider(deletion) };
  });
  for (const user of [keyless, unreadable]) {
    await ask(user);
    await reaches(user, "done");
    const audits = await deps.sql`select action from audit_log
    where subject_user_id = ${user.id} and action not like 'subscription.%' order by id`;
    expect(audits.map((row) => row["action"])).toContain("identity.revocation_failed");
  }
  await stop(loop);
});

test("two processes: each step of each is done by one of them, and the invariants hold meanwhile and after", async () => {
  const person = next();
  const done: string[] = [];
  const counted = (real: DeletionSteps) =>
    Object.fromEntries(
      STEPS.map((step) => [
        step,
        async (deletion: Deletion) => {
          const after = await real[step](deletion);
          if (after || step === "mail") done.push(step);
          return after;
        },
      ]),
    );
  const loops = [start(counted), start(counted)];
  await ask(person.user);
  const violated = async () =>
    (await checkInvariants(deps, { patienceMs: 20_000, timeoutMs: 10_000 })).filter(({ status }) => status !== "ok");
  expect(await violated()).toEqual([]);
  await reaches(person.user, "done");
  await expectGone(person);
  expect(done).toEqual([...STEPS]);
  expect(await violated()).toEqual([]);
  for (const loop of loops) await stop(loop);
});
