import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { createAccount, emit, find, type Account, type Settings } from "./stripeAccount.ts";
import { createPrice, createProduct } from "./stripeCatalog.ts";
import { confirmCheckout, submitCheckout } from "./stripeCheckout.ts";
import { createClock, type Clock, type Span } from "./stripeClock.ts";
import type { Outcome } from "./stripeCollection.ts";
import { createCustomer, setCard } from "./stripeCustomers.ts";
import type { IdempotencyKeys } from "./stripeIdempotency.ts";
import { answerPage } from "./stripePages.ts";
import { closeDispute, createRefund, openDispute } from "./stripePayments.ts";
import { portalCancel, portalChangeCard, portalChangePlan, portalPay, portalResume } from "./stripePortal.ts";
import { answerApi, type Api, type Fault, type RecordedRequest } from "./stripeRequests.ts";
import { emptyObjects, type Card, type Dispute, type Objects, type Refund } from "./stripeState.ts";
import { createSubscription, deleteCustomer } from "./stripeSubscriptions.ts";
import { truthOf, type Truth } from "./stripeTruth.ts";
import { cancelSubscription } from "./stripeUpdates.ts";
import { createWebhooks, type Webhooks } from "./stripeWebhooks.ts";

export interface FakeStripeOptions {
  /** Default: a free one. */
  port?: number;
  /** The test mode's key (`sk_test_…`), default `sk_test_reef`; the live mode's is the same with `live`. */
  secretKey?: string;
  /** Each signs every event; default `whsec_reef`. */
  webhookSecrets?: string[];
  /** Where the test mode's events go. */
  deliverTo?: string | string[];
  /** Where the pages are for a browser, when it is not where the server listens. */
  publicUrl?: string;
  /** Seconds; default now. */
  now?: number;
  /** The clock runs by itself, as a play shop's does; else it stands still until `advance`. */
  running?: boolean;
  settings?: Partial<Settings>;
  /** What `snapshot()` gave once. */
  snapshot?: StripeSnapshot;
}

/** All that it knows, as plain data for JSON. */
export interface StripeSnapshot {
  version: 1;
  now: number;
  test: { objects: Objects; keys: IdempotencyKeys };
  live: { objects: Objects; keys: IdempotencyKeys };
}

/** A real HTTP server that speaks as Stripe does, and what a test or a play shop does with it. */
export interface FakeStripe {
  /** Of the pages: checkout, portal. */
  url: string;
  /** Of the API: for STRIPE_API_BASE. */
  apiBase: string;
  secretKey: string;
  liveKey: string;
  webhooks: Webhooks;
  settings: Settings;
  /** The last 5,000, oldest first. */
  requests: RecordedRequest[];
  /** Asked for each request; null: all is well. */
  fault: ((request: RecordedRequest) => Fault | null) | null;
  /** Only the next request that matches; several wait in a row. */
  failNext(fault: Fault, matches?: (request: RecordedRequest) => boolean): void;
  /** Seconds. */
  now(): number;
  /** To a time (seconds) or by a span; what is due on the way happens: renewals, retries, ends. */
  advance(to: Span | number): void;
  /** What really is with a customer. */
  truth(customerId: string): Truth;
  /** The mode's innards. */
  account(mode?: "live" | "test"): Account;

  /** The person's side. */
  completeCheckout(sessionId: string, options?: { card?: Card }): Outcome;
  /** The person answers their bank's question in the checkout. */
  confirmCheckout(sessionId: string): Outcome;
  setCard(customerId: string, card: Card): void;
  portal: {
    cancel(subscriptionId: string): void;
    resume(subscriptionId: string): void;
    changePlan(subscriptionId: string, priceId: string): "changed" | "declined" | "scheduled";
    changeCard(customerId: string, card: Card): void;
    pay(invoiceId: string, options?: { confirmed?: boolean }): Outcome;
  };

  /** What happens in the bank or in Stripe's dashboard. */
  refund(chargeId: string, amount?: number): Refund;
  openDispute(chargeId: string, reason?: string): Dispute;
  closeDispute(disputeId: string, how: "lost" | "won"): Dispute;
  deleteCustomer(customerId: string): void;
  /** Ends a subscription at once, as a click in the dashboard does. */
  cancelNow(subscriptionId: string): void;
  /** An event that means nothing to a subscription. */
  emitUnrelated(type: string, object?: Record<string, unknown>): void;

  /** An active subscription with this id, out of nowhere; returns its customer's id. */
  plantSubscription(id: string): string;
  statusOf(subscriptionId: string): string | null;

  snapshot(): StripeSnapshot;
  close(): Promise<void>;
}

interface Mode {
  account: Account;
  keys: IdempotencyKeys;
}

const SETTINGS: Settings = { retryDays: [3, 5, 7], giveUp: "cancel", billingMode: "flexible", shopName: "Play shop" };

/** The innards, before there is a server. */
interface World {
  modes: { live: Mode; test: Mode };
  clock: Clock;
  webhooks: Webhooks;
  settings: Settings;
}

function createWorld(options: FakeStripeOptions, url: string): World {
  const settings = { ...SETTINGS, ...options.settings };
  const urls = [options.deliverTo ?? []].flat();
  const secrets = options.webhookSecrets ?? ["whsec_reef"];
  const webhooks = createWebhooks(urls.map((to) => ({ url: to, secrets, live: false })));
  const makeMode = (live: boolean): Mode => {
    const saved = options.snapshot?.[live ? "live" : "test"];
    const account = createAccount({
      live,
      settings,
      url,
      now: () => clock.now(),
      onEvent: (event) => webhooks.offer(event),
      other: () => modes[live ? "test" : "live"].account,
    });
    account.objects = { ...emptyObjects(), ...structuredClone(saved?.objects) };
    return { account, keys: structuredClone(saved?.keys ?? {}) };
  };
  const modes = { live: makeMode(true), test: makeMode(false) };
  const real = Math.floor(Date.now() / 1000);
  const saved = options.snapshot?.now ?? options.now ?? real;
  // A running shop was not asleep while it was switched off.
  const start = options.running ? Math.max(saved, real) : saved;
  const clock = createClock(() => [modes.test.account, modes.live.account], {
    start,
    running: options.running ?? false,
  });
  return { modes, clock, webhooks, settings };
}

/** Starts it on loopback. All state is in memory. */
export async function startFakeStripe(options: FakeStripeOptions = {}): Promise<FakeStripe> {
  const server = createServer((request, response) => void handle(request, response));
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(options.port ?? 0, "127.0.0.1", resolve);
  });
  const apiBase = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const url = options.publicUrl ?? apiBase;
  const world = createWorld(options, url);
  const stripe = createFake(options, { url, apiBase, world });
  const api = createApi(stripe, world);
  const timer = options.running ? setInterval(() => world.clock.catchUp(), 60_000) : undefined;

  async function handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      if (request.url?.startsWith("/v1/")) await answerApi(api, request, response);
      else await answerPage(stripe, request, response);
    } catch (error) {
      console.error("fake Stripe:", error);
      if (!response.headersSent) response.writeHead(500);
      response.end();
    }
  }
  stripe.close = async () => {
    clearInterval(timer);
    world.webhooks.close();
    await world.webhooks.settled();
    for (const response of api.hanging) response.destroy();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  };
  return stripe;
}

function createApi(stripe: FakeStripe, { modes, clock }: World): Api {
  const keys: Record<string, Mode> = { [stripe.secretKey]: modes.test, [stripe.liveKey]: modes.live };
  const waiting: { fault: Fault; matches: (request: RecordedRequest) => boolean }[] = [];
  stripe.failNext = (fault, matches = () => true) => void waiting.push({ fault, matches });
  return {
    accountOf: (key) => (Object.hasOwn(keys, key) ? keys[key]! : null),
    requests: stripe.requests,
    nextFault(request) {
      const index = waiting.findIndex(({ matches }) => matches(request));
      return index >= 0 ? waiting.splice(index, 1)[0]!.fault : (stripe.fault?.(request) ?? null);
    },
    now: () => clock.now(),
    advanceTestClock: (testClock, to) => clock.advanceTestClock(modes.test.account, testClock, to),
    catchUp: () => clock.catchUp(),
    hanging: new Set(),
  };
}

function createFake(
  options: FakeStripeOptions,
  { url, apiBase, world }: { url: string; apiBase: string; world: World },
): FakeStripe {
  const { modes, clock, webhooks, settings } = world;
  const secretKey = options.secretKey ?? "sk_test_reef";
  // Whichever mode knows it.
  const owner = (kind: keyof Objects, id: string) =>
    find(modes.live.account, kind, id) === null ? modes.test.account : modes.live.account;
  return {
    url,
    apiBase,
    secretKey,
    liveKey: secretKey.replace("_test_", "_live_"),
    webhooks,
    settings,
    requests: [],
    fault: null,
    failNext: () => undefined,
    now: () => clock.now(),
    advance: (to) => clock.advance(to),
    truth: (id) => truthOf(find(modes.live.account, "customers", id) ? modes.live.account : modes.test.account, id),
    account: (mode = "test") => modes[mode].account,
    completeCheckout: (id, { card = "ok" } = {}) => submitCheckout(owner("checkoutSessions", id), id, card),
    confirmCheckout: (id) => confirmCheckout(owner("checkoutSessions", id), id),
    setCard: (id, card) => setCard(owner("customers", id), id, card),
    portal: portalOf(owner),
    refund: (charge, amount) =>
      createRefund(owner("charges", charge), { charge, ...(amount !== undefined && { amount }) }),
    openDispute: (charge, reason) => openDispute(owner("charges", charge), charge, reason),
    closeDispute: (id, how) => closeDispute(owner("disputes", id), id, how),
    deleteCustomer: (id) => void deleteCustomer(owner("customers", id), id),
    cancelNow: (id) => void cancelSubscription(owner("subscriptions", id), id, {}),
    emitUnrelated: (type, object = { object: "balance" }) => emit(modes.test.account, type, object),
    plantSubscription: (id) => plantSubscription(modes.test.account, id),
    statusOf: (id) => find(owner("subscriptions", id), "subscriptions", id)?.status ?? null,
    snapshot: () =>
      structuredClone({
        version: 1,
        now: clock.now(),
        test: { objects: modes.test.account.objects, keys: modes.test.keys },
        live: { objects: modes.live.account.objects, keys: modes.live.keys },
      }),
    close: () => Promise.resolve(),
  };
}

function portalOf(owner: (kind: keyof Objects, id: string) => Account): FakeStripe["portal"] {
  return {
    cancel: (id) => portalCancel(owner("subscriptions", id), id),
    resume: (id) => portalResume(owner("subscriptions", id), id),
    changePlan: (id, price) => portalChangePlan(owner("subscriptions", id), id, price),
    changeCard: (id, card) => portalChangeCard(owner("customers", id), id, card),
    pay: (id, { confirmed = false } = {}) => portalPay(owner("invoices", id), id, confirmed),
  };
}

function plantSubscription(account: Account, id: string): string {
  const product = createProduct(account, { name: "Planted" });
  const price = createPrice(account, {
    product: product.id,
    currency: "usd",
    unit_amount: 699,
    recurring: { interval: "month" },
  });
  const customer = createCustomer(account, {
    payment_method: "pm_card_visa",
    invoice_settings: { default_payment_method: "pm_card_visa" },
  });
  const made = createSubscription(account, { customer: customer.id, items: [{ price: price.id }] });
  delete account.objects.subscriptions[made.id];
  const planted = { ...made, id };
  for (const item of planted.items.data) item.subscription = id;
  for (const invoice of Object.values(account.objects.invoices)) {
    const details = invoice.parent?.subscription_details;
    if (details?.subscription === made.id) details.subscription = id;
  }
  account.objects.subscriptions[id] = planted;
  return customer.id;
}
