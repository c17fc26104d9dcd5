import { emit, type Account } from "./stripeAccount.ts";
import { makeLine, nameOf, pricingOf, type Line, type LineInput } from "./stripeInvoices.ts";
import { shareOf } from "./stripePeriods.ts";
import {
  decimal,
  newStripeId,
  type InvoiceItem,
  type Price,
  type Subscription,
  type SubscriptionItem,
} from "./stripeState.ts";

function day(seconds: number): string {
  return new Date(seconds * 1000).toLocaleDateString("en-GB", { day: "2-digit", month: "short", year: "numeric" });
}

/** A price and how many of it. */
export interface Sold {
  price: Price;
  quantity: number;
}

/** What a change in the middle of a period gives back for `from` and costs for `to`. Only made, not yet kept. */
export function prorate(
  account: Account,
  input: { subscription: Subscription; item: SubscriptionItem; from: Sold | null; to: Sold | null; at: number },
): InvoiceItem[] {
  const { subscription, item, from, to, at } = input;
  const period = { start: item.current_period_start, end: item.current_period_end };
  const part = (sold: Sold, sign: 1 | -1, what: string) =>
    makeInvoiceItem(account, {
      subscription,
      item,
      ...sold,
      amount: sign * shareOf((sold.price.unit_amount ?? 0) * sold.quantity, period, at),
      description: `${what} time on ${nameOf(account, sold.price)} after ${day(at)}`,
      period: { ...period, start: at },
    });
  return [...(from ? [part(from, -1, "Unused")] : []), ...(to ? [part(to, 1, "Remaining")] : [])];
}

function makeInvoiceItem(account: Account, input: LineInput): InvoiceItem {
  const { subscription, item, price, amount, description, period, quantity } = input;
  return {
    id: newStripeId("ii"),
    object: "invoiceitem",
    amount,
    currency: price.currency,
    customer: subscription.customer,
    customer_account: null,
    date: period.start,
    description,
    discountable: false,
    discounts: [],
    invoice: null,
    livemode: account.live,
    metadata: {},
    parent: {
      subscription_details: { subscription: subscription.id, subscription_item: item.id },
      type: "subscription_details",
    },
    period,
    pricing: pricingOf(price),
    proration: true,
    proration_details: { credited_items: null, discount_amounts: [] },
    quantity,
    quantity_decimal: decimal(quantity),
    tax_rates: [],
    test_clock: subscription.test_clock,
  };
}

export function keepInvoiceItems(account: Account, items: InvoiceItem[]): void {
  for (const item of items) {
    account.objects.invoiceItems[item.id] = item;
    emit(account, "invoiceitem.created", item);
  }
}

export function pendingItems(account: Account, subscriptionId: string): InvoiceItem[] {
  return Object.values(account.objects.invoiceItems).filter(
    (item) => item.invoice === null && item.parent?.subscription_details?.subscription === subscriptionId,
  );
}

export function linesOfItems(account: Account, subscription: Subscription, items: InvoiceItem[]): Line[] {
  return items.map((pending) => {
    const item = subscription.items.data[0]!;
    const price = account.objects.prices[pending.pricing!.price_details!.price as string]!;
    const { amount, period, quantity } = pending;
    const description = pending.description ?? "";
    return makeLine(account, {
      subscription,
      item,
      price,
      quantity,
      amount,
      description,
      period,
      invoiceItem: pending.id,
    });
  });
}
