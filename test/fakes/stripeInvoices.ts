import type Stripe from "stripe";
import { emit, find, timeOf, type Account } from "./stripeAccount.ts";
import {
  decimal,
  newStripeId,
  wholeList,
  type Invoice,
  type Price,
  type Subscription,
  type SubscriptionItem,
} from "./stripeState.ts";

export type Line = Stripe.InvoiceLineItem;
type Period = { start: number; end: number };
type BillingReason = "subscription_create" | "subscription_cycle" | "subscription_update" | "upcoming";

/** Seconds that a renewal's invoice stays a draft before it is charged. */
const DRAFT_SECONDS = 3600;

export function subscriptionOf(invoice: Invoice): string | null {
  const id = invoice.parent?.subscription_details?.subscription;
  return typeof id === "string" ? id : null;
}

export function nameOf(account: Account, price: Price): string {
  return find(account, "products", price.product)?.name ?? "Subscription";
}

export function pricingOf(price: Price): NonNullable<Line["pricing"]> {
  const details = { price: price.id, product: price.product };
  return { price_details: details, type: "price_details", unit_amount_decimal: decimal(price.unit_amount ?? 0) };
}

export interface LineInput {
  subscription: Subscription;
  item: SubscriptionItem;
  price: Price;
  quantity: number;
  amount: number;
  description: string;
  period: Period;
  invoiceItem?: string;
}

export function makeLine(account: Account, input: LineInput): Line {
  const details = {
    invoice_item: input.invoiceItem ?? null,
    proration: input.invoiceItem !== undefined,
    proration_details: { credited_items: null },
    subscription: input.subscription.id,
    subscription_item: input.item.id,
  };
  return {
    id: newStripeId("il"),
    object: "line_item",
    amount: input.amount,
    currency: input.price.currency,
    description: input.description,
    discount_amounts: [],
    discountable: !details.proration,
    discounts: [],
    invoice: null,
    livemode: account.live,
    metadata: input.subscription.metadata,
    parent: { invoice_item_details: null, subscription_item_details: details, type: "subscription_item_details" },
    period: input.period,
    pretax_credit_amounts: [],
    pricing: pricingOf(input.price),
    quantity: input.quantity,
    quantity_decimal: decimal(input.quantity),
    subscription: input.subscription.id,
    subtotal: input.amount,
    taxes: [],
  };
}

/** One line per item for its period. */
export function periodLines(account: Account, subscription: Subscription): Line[] {
  return subscription.items.data.map((item) => {
    const price = item.price as Price;
    const quantity = item.quantity ?? 1;
    const name = nameOf(account, price);
    const unit = `$${((price.unit_amount ?? 0) / 100).toFixed(2)} / ${price.recurring?.interval}`;
    return makeLine(account, {
      subscription,
      item,
      price,
      quantity,
      amount: (price.unit_amount ?? 0) * quantity,
      description: `${quantity} × ${name} (at ${unit})`,
      period: { start: item.current_period_start, end: item.current_period_end },
    });
  });
}

interface InvoiceInput {
  subscription: Subscription;
  reason: BillingReason;
  lines: Line[];
  period: Period;
  at: number;
}

/** A draft. Amounts: lines, then the customer's credit. */
export function makeInvoice(account: Account, input: InvoiceInput): Invoice {
  const { subscription, lines, at } = input;
  const customer = find(account, "customers", subscription.customer);
  const total = lines.reduce((sum, line) => sum + line.amount, 0);
  const balance = customer?.balance ?? 0;
  const due = Math.max(0, total + balance);
  const id = newStripeId("in");
  for (const line of lines) line.invoice = id;
  return {
    ...INVOICE_DEFAULTS,
    id,
    account_name: account.settings.shopName,
    amount_due: due,
    amount_remaining: due,
    auto_advance: true,
    automatically_finalizes_at: at + DRAFT_SECONDS,
    billing_reason: input.reason,
    created: at,
    currency: subscription.currency,
    customer: subscription.customer,
    customer_email: customer?.email ?? null,
    customer_name: customer?.name ?? null,
    lines: wholeList(lines, `/v1/invoices/${id}/lines`),
    livemode: account.live,
    parent: {
      quote_details: null,
      subscription_details: { metadata: subscription.metadata, subscription: subscription.id },
      type: "subscription_details",
    },
    period_end: input.period.end,
    period_start: input.period.start,
    starting_balance: balance,
    status_transitions: { finalized_at: null, marked_uncollectible_at: null, paid_at: null, voided_at: null },
    subtotal: total,
    subtotal_excluding_tax: total,
    test_clock: subscription.test_clock,
    total,
    total_excluding_tax: total,
  };
}

const INVOICE_DEFAULTS = {
  object: "invoice" as const,
  account_country: "US",
  account_tax_ids: null,
  amount_overpaid: 0,
  amount_paid: 0,
  amount_shipping: 0,
  application: null,
  attempt_count: 0,
  attempted: false,
  automatic_tax: { disabled_reason: null, enabled: false, liability: null, provider: null, status: null },
  collection_method: "charge_automatically" as const,
  custom_fields: null,
  customer_account: null,
  customer_address: null,
  customer_phone: null,
  customer_shipping: null,
  customer_tax_exempt: "none" as const,
  customer_tax_ids: [],
  default_payment_method: null,
  default_source: null,
  default_tax_rates: [],
  description: null,
  discounts: [],
  due_date: null,
  effective_at: null,
  ending_balance: null,
  footer: null,
  from_invoice: null,
  hosted_invoice_url: null,
  invoice_pdf: null,
  issuer: { type: "self" as const },
  last_finalization_error: null,
  latest_revision: null,
  metadata: {},
  next_payment_attempt: null,
  number: null,
  on_behalf_of: null,
  payment_settings: { default_mandate: null, payment_method_options: null, payment_method_types: null },
  post_payment_credit_notes_amount: 0,
  pre_payment_credit_notes_amount: 0,
  receipt_number: null,
  rendering: null,
  shipping_cost: null,
  shipping_details: null,
  statement_descriptor: null,
  status: "draft" as const,
  total_discount_amounts: [],
  total_pretax_credit_amounts: [],
  total_taxes: [],
  webhooks_delivered_at: null,
};

/** Keeps a draft, with the pending items that are on it. */
export function keepInvoice(account: Account, invoice: Invoice): Invoice {
  account.objects.invoices[invoice.id] = invoice;
  for (const line of invoice.lines.data) {
    const id = line.parent?.subscription_item_details?.invoice_item;
    const item = find(account, "invoiceItems", id ?? null);
    if (item) item.invoice = invoice.id;
  }
  emit(account, "invoice.created", invoice);
  return invoice;
}

/** From draft to open: numbered, and the customer's credit is used up or grows. */
export function finalizeInvoice(account: Account, invoice: Invoice): void {
  const customer = find(account, "customers", invoice.customer);
  const at = timeOf(account, invoice.customer);
  const number = customer?.next_invoice_sequence ?? 1;
  invoice.status = "open";
  invoice.automatically_finalizes_at = null;
  invoice.effective_at = at;
  invoice.status_transitions.finalized_at = at;
  invoice.number = `${customer?.invoice_prefix ?? "X"}-${String(number).padStart(4, "0")}`;
  invoice.hosted_invoice_url = `${account.url}/i/${invoice.id}`;
  invoice.ending_balance = Math.min(0, invoice.total + invoice.starting_balance);
  if (customer) {
    customer.next_invoice_sequence = number + 1;
    customer.balance = invoice.ending_balance;
    customer.currency ??= invoice.currency;
  }
  emit(account, "invoice.finalized", invoice);
}
