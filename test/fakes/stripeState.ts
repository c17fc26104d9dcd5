import type Stripe from "stripe";

/** An object of Stripe's with these references as ids, the way it is kept and sent unless expanded. */
type Plain<T, K extends keyof T = never> = Omit<T, K> & { [P in K]: Extract<T[P], string | null> };

export type Product = Plain<Stripe.Product, "default_price">;
export type Price = Plain<Stripe.Price, "product">;
export type Customer = Stripe.Customer;
export type PaymentMethod = Plain<Stripe.PaymentMethod, "customer">;
export type Subscription = Plain<
  Stripe.Subscription,
  "customer" | "default_payment_method" | "latest_invoice" | "schedule" | "test_clock"
>;
export type SubscriptionItem = Stripe.SubscriptionItem;
export type Schedule = Plain<Stripe.SubscriptionSchedule, "customer" | "subscription" | "test_clock">;
export type Invoice = Plain<Stripe.Invoice, "default_payment_method" | "test_clock"> & { id: string; customer: string };
export type InvoiceItem = Plain<Stripe.InvoiceItem, "customer" | "invoice">;
export type InvoicePayment = Plain<Stripe.InvoicePayment, "invoice">;
export type PaymentIntent = Plain<Stripe.PaymentIntent, "latest_charge" | "payment_method"> & { customer: string };
export type Charge = Plain<Stripe.Charge, "payment_intent"> & { customer: string };
export type Refund = Plain<Stripe.Refund, "charge">;
export type Dispute = Plain<Stripe.Dispute, "charge">;
export type CheckoutSession = Plain<Stripe.Checkout.Session, "customer" | "invoice" | "subscription">;
export type PortalSession = Plain<Stripe.BillingPortal.Session, "configuration">;
export type PortalConfiguration = Stripe.BillingPortal.Configuration;
export type TestClock = Stripe.TestHelpers.TestClock;
export type StripeEvent = Omit<Stripe.EventBase, "data" | "type"> & {
  type: string;
  data: { object: any; previous_attributes?: Record<string, unknown> };
};

/** What the bank says when a card is charged. */
export type Card = "ok" | "declined" | "requires_action";

/** What Stripe knows of a mode (test or live): all by id, oldest first. Plain data, can be written as JSON. */
export interface Objects {
  products: Record<string, Product>;
  prices: Record<string, Price>;
  customers: Record<string, Customer>;
  /** Ids of customers that are no more. */
  deletedCustomers: Record<string, { id: string }>;
  paymentMethods: Record<string, PaymentMethod>;
  subscriptions: Record<string, Subscription>;
  schedules: Record<string, Schedule>;
  invoices: Record<string, Invoice>;
  invoiceItems: Record<string, InvoiceItem>;
  invoicePayments: Record<string, InvoicePayment>;
  paymentIntents: Record<string, PaymentIntent>;
  charges: Record<string, Charge>;
  refunds: Record<string, Refund>;
  disputes: Record<string, Dispute>;
  checkoutSessions: Record<string, CheckoutSession>;
  portalSessions: Record<string, PortalSession>;
  portalConfigurations: Record<string, PortalConfiguration>;
  testClocks: Record<string, TestClock>;
  events: Record<string, StripeEvent>;
  /** How the bank answers for a payment method. */
  cards: Record<string, Card>;
  /** What a checkout session will sell, and the subscription that it has begun. */
  carts: Record<string, Cart>;
}

export interface Cart {
  price: string;
  quantity: number;
  description: string | null;
  metadata: Record<string, string>;
  subscription: string | null;
}

export function emptyObjects(): Objects {
  const names = `products prices customers deletedCustomers paymentMethods subscriptions schedules invoices invoiceItems
    invoicePayments paymentIntents charges refunds disputes checkoutSessions portalSessions portalConfigurations testClocks
    events cards carts`.split(/\s+/);
  return Object.fromEntries(names.map((name) => [name, {}])) as unknown as Objects;
}

const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

function randomText(length: number): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(length)), (byte) => ALPHABET[byte % 62]).join("");
}

/** An id as Stripe makes them: `cus_…` short, the rest long. */
export function newStripeId(prefix: string): string {
  return prefix === "cus" || prefix === "prod" ? `${prefix}_${randomText(14)}` : `${prefix}_1${randomText(23)}`;
}

export function newCheckoutId(live: boolean): string {
  return `cs_${live ? "live" : "test"}_a1${randomText(56)}`;
}

/** The wire has decimals as text; the SDK makes its own class of them. */
export function decimal(value: number): Stripe.Decimal {
  return String(value) as unknown as Stripe.Decimal;
}

/** A list as it stands inside an object. */
export function wholeList<T>(data: T[], url: string): Stripe.ApiList<T> {
  return { object: "list", data, has_more: false, url };
}
