import { API_VERSION } from "./stripeApiChanges.ts";
import { missing } from "./stripeErrors.ts";
import { emptyObjects, newStripeId, type Objects, type StripeEvent } from "./stripeState.ts";

/** How Stripe is set up: what the dashboard holds. */
export interface Settings {
  /** Days after a failed renewal until the next try, one after the other; then `giveUp` happens. */
  retryDays: number[];
  giveUp: "cancel" | "past_due" | "unpaid";
  /** How new subscriptions are billed when the request does not say; flexible since 2025-09-30. */
  billingMode: "classic" | "flexible";
  shopName: string;
}

/** One mode of the account: nothing of test is seen with a live key, and the other way round. */
export interface Account {
  live: boolean;
  objects: Objects;
  settings: Settings;
  /** Where the pages are. */
  url: string;
  /** Seconds, of everything that has no test clock of its own. */
  now(): number;
  /** The request that is being answered; null when Stripe acts by itself. */
  request: { id: string; idempotency_key: string | null } | null;
  /** Called with each new event. */
  onEvent(event: StripeEvent): void;
  /** The other mode. */
  other(): Account;
}

export function createAccount(base: Pick<Account, "live" | "settings" | "url" | "now" | "onEvent" | "other">): Account {
  return { ...base, objects: emptyObjects(), request: null };
}

type Kind = keyof Objects;

const KIND_NAMES: Partial<Record<Kind, string>> = {
  paymentMethods: "PaymentMethod",
  schedules: "subscription schedule",
  invoicePayments: "invoice_payment",
  paymentIntents: "payment_intent",
  checkoutSessions: "checkout.session",
  portalConfigurations: "billing_portal.configuration",
  testClocks: "test_clock",
  events: "event",
  deletedCustomers: "customer",
};

/** The object with this id, or Stripe's `resource_missing`: 404 for the path's own, 400 for a parameter's. */
export function need<K extends Kind>(account: Account, kind: K, id: string, param?: string): Objects[K][string] {
  const found = Object.hasOwn(account.objects[kind], id) ? account.objects[kind][id] : undefined;
  if (found !== undefined) return found as Objects[K][string];
  const name = KIND_NAMES[kind] ?? kind.replace(/s$/, "");
  const elsewhere = Object.hasOwn(account.other().objects[kind], id);
  throw missing(name, id, {
    ...(param !== undefined && { param }),
    ...(elsewhere && { otherMode: account.live ? ("test" as const) : ("live" as const) }),
  });
}

export function find<K extends Kind>(account: Account, kind: K, id: string | null): Objects[K][string] | null {
  const found = id !== null && Object.hasOwn(account.objects[kind], id) ? account.objects[kind][id] : undefined;
  return (found as Objects[K][string] | undefined) ?? null;
}

/** Seconds: the customer's test clock, else the account's. */
export function timeOf(account: Account, customerId: string | null): number {
  const clock = find(account, "customers", customerId)?.test_clock;
  const own = typeof clock === "string" ? find(account, "testClocks", clock) : null;
  return own ? own.frozen_time : account.now();
}

/** Writes an event as Stripe would and hands it to the webhooks. The object is kept as it is now. */
export function emit(
  account: Account,
  type: string,
  object: { id?: string; customer?: unknown },
  previous?: Record<string, unknown>,
): void {
  const customer = type.startsWith("customer.") && !type.includes("subscription") ? object.id : object.customer;
  const event: StripeEvent = {
    id: newStripeId("evt"),
    object: "event",
    api_version: API_VERSION,
    created: timeOf(account, typeof customer === "string" ? customer : null),
    data: { object: structuredClone(object), ...(previous && { previous_attributes: previous }) },
    livemode: account.live,
    pending_webhooks: 1,
    request: account.request ?? { id: null as unknown as string, idempotency_key: null },
    type,
  };
  account.objects.events[event.id] = event;
  account.onEvent(event);
}

/** Changes an object and writes `type` with what was before; nothing when nothing changed. */
export function change<T extends object>(account: Account, type: string, object: T, mutate: (object: T) => void): void {
  const before = structuredClone(object);
  mutate(object);
  const previous = differences(before, object);
  if (Object.keys(previous).length > 0) emit(account, type, object as { id?: string; customer?: unknown }, previous);
}

function differences(before: object, after: object): Record<string, unknown> {
  const previous: Record<string, unknown> = {};
  const now = after as Record<string, unknown>;
  for (const [key, old] of Object.entries(before)) {
    if (JSON.stringify(old) === JSON.stringify(now[key])) continue;
    const nested = isPlain(old) && isPlain(now[key]);
    previous[key] = nested ? differences(old as object, now[key] as object) : old;
  }
  for (const key of Object.keys(now)) if (!(key in before)) previous[key] = null;
  return previous;
}

function isPlain(value: unknown): boolean {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** New metadata over old: an empty value removes its key, an empty whole removes all. */
export function mergeMetadata(old: Record<string, string> | null, given: unknown): Record<string, string> {
  if (given === undefined) return old ?? {};
  if (given === "") return {};
  const merged = { ...old, ...(given as Record<string, string>) };
  return Object.fromEntries(Object.entries(merged).filter(([, value]) => value !== ""));
}
