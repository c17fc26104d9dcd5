import { emit, find, mergeMetadata, need, timeOf, type Account } from "./stripeAccount.ts";
import { needRecurringPrice } from "./stripeCatalog.ts";
import { changeSubscription, collect, type Outcome } from "./stripeCollection.ts";
import { addCard, createCustomer } from "./stripeCustomers.ts";
import { invalidRequest } from "./stripeErrors.ts";
import { isSafeTarget } from "./stripeHtml.ts";
import type { Params } from "./stripeParams.ts";
import { newCheckoutId, newStripeId, type Card, type Cart, type CheckoutSession, type Price } from "./stripeState.ts";
import { ENDED, makeSubscription, startBilling } from "./stripeSubscriptions.ts";

/** Seconds that a session stays open unless told otherwise. */
const OPEN_SECONDS = 24 * 3600;

export function createCheckout(account: Account, params: Params): CheckoutSession {
  if (params.mode !== "subscription") throw invalidRequest("This double sells only subscriptions.", { param: "mode" });
  const [line] = (params.line_items ?? []) as Params[];
  if (!line?.price) throw missingParam(line ? "line_items[0][price]" : "line_items");
  if (!params.success_url) throw missingParam("success_url");
  for (const name of ["success_url", "cancel_url"]) refuseBadUrl(params, name);
  if (params.allow_promotion_codes && params.discounts)
    throw invalidRequest("You may only specify one of these parameters: allow_promotion_codes, discounts.");
  if (params.customer && params.customer_email)
    throw invalidRequest("You may only specify one of these parameters: customer, customer_email.");
  const price = needRecurringPrice(account, line.price, "line_items[0][price]");
  const customer = params.customer ? need(account, "customers", params.customer, "customer") : null;
  const id = newCheckoutId(account.live);
  const now = timeOf(account, customer?.id ?? null);
  refuseBadExpiry(params, now);
  const quantity: number = line.quantity ?? 1;
  const total = (price.unit_amount ?? 0) * quantity;
  const session: CheckoutSession = {
    ...SESSION_DEFAULTS,
    id,
    allow_promotion_codes: params.allow_promotion_codes ?? null,
    amount_subtotal: total,
    amount_total: total,
    cancel_url: params.cancel_url ?? null,
    client_reference_id: params.client_reference_id ?? null,
    created: now,
    currency: price.currency,
    customer: customer?.id ?? null,
    customer_creation: customer ? null : "always",
    customer_email: params.customer_email ?? null,
    expires_at: params.expires_at ?? now + OPEN_SECONDS,
    livemode: account.live,
    locale: params.locale ?? null,
    metadata: mergeMetadata({}, params.metadata),
    success_url: params.success_url,
    url: `${account.url}/c/pay/${id}`,
  };
  account.objects.checkoutSessions[id] = session;
  account.objects.carts[id] = {
    price: price.id,
    quantity,
    description: params.subscription_data?.description ?? null,
    metadata: params.subscription_data?.metadata ?? {},
    subscription: null,
  };
  return session;
}

function missingParam(param: string) {
  return invalidRequest(`Missing required param: ${param}.`, { code: "parameter_missing", param });
}

function refuseBadExpiry(params: Params, now: number): void {
  const at: number | undefined = params.expires_at;
  if (at === undefined) return;
  if (at < now + 1800 || at > now + OPEN_SECONDS)
    throw invalidRequest(
      "The `expires_at` timestamp must be at least 30 minutes and at most 24 hours from Checkout Session creation.",
      { param: "expires_at" },
    );
}

/** Pages and apps (`reef://…`) are places to return to. */
export function refuseBadUrl(params: Params, param: string): void {
  if (params[param] !== undefined && !isSafeTarget(params[param]))
    throw invalidRequest("Not a valid URL", { code: "url_invalid", param });
}

const SESSION_DEFAULTS = {
  object: "checkout.session" as const,
  adaptive_pricing: null,
  after_expiration: null,
  allowed_payment_method_types: null,
  automatic_tax: { enabled: false, liability: null, provider: null, status: null },
  billing_address_collection: null,
  client_secret: null,
  collected_information: null,
  consent: null,
  consent_collection: null,
  currency_conversion: null,
  custom_fields: [],
  custom_text: { after_submit: null, shipping_address: null, submit: null, terms_of_service_acceptance: null },
  customer_account: null,
  customer_details: null,
  discounts: [],
  integration_identifier: null,
  invoice: null,
  invoice_creation: null,
  managed_payments: { enabled: false },
  mode: "subscription" as const,
  origin_context: null,
  payment_intent: null,
  payment_link: null,
  payment_method_collection: "always" as const,
  payment_method_configuration_details: null,
  payment_method_options: null,
  payment_method_types: ["card"],
  payment_status: "unpaid" as const,
  permissions: null,
  recovered_from: null,
  saved_payment_method_options: null,
  setup_intent: null,
  shipping_address_collection: null,
  shipping_cost: null,
  shipping_options: [],
  status: "open" as const,
  submit_type: null,
  subscription: null,
  total_details: { amount_discount: 0, amount_shipping: 0, amount_tax: 0 },
  ui_mode: "hosted_page" as const,
  wallet_options: null,
};

/** What the session sells, as Stripe lists it. */
export function checkoutLines(account: Account, id: string) {
  const session = need(account, "checkoutSessions", id);
  const cart = need(account, "carts", id);
  const price = need(account, "prices", cart.price);
  return [
    {
      id: newStripeId("li"),
      object: "item",
      adjustable_quantity: null,
      amount_discount: 0,
      amount_subtotal: session.amount_subtotal,
      amount_tax: 0,
      amount_total: session.amount_total,
      currency: price.currency,
      description: find(account, "products", price.product)?.name ?? null,
      metadata: {},
      price,
      quantity: cart.quantity,
    },
  ];
}

/**
 * The person sends the form. Stripe makes the subscription as `incomplete` and then charges; while that does not
 * succeed the session stays open, and a second try in it pays the same invoice (assumed: Stripe does not say so).
 */
export function submitCheckout(account: Account, id: string, card: Card): Outcome {
  const session = need(account, "checkoutSessions", id);
  if (session.status !== "open") throw new Error(`checkout session ${id} is ${session.status}`);
  const customer = session.customer ?? buyerOf(account, session);
  need(account, "customers", customer);
  const cart = need(account, "carts", id);
  const method = addCard(account, customer, card).id;
  const begun = find(account, "subscriptions", cart.subscription);
  if (begun && !ENDED.includes(begun.status)) {
    changeSubscription(account, begun, () => void (begun.default_payment_method = method));
    const outcome = collect(account, need(account, "invoices", begun.latest_invoice!));
    return finish(account, session, cart, outcome);
  }
  const price = need(account, "prices", cart.price) as Price;
  const { description, metadata } = cart;
  const subscription = makeSubscription(account, {
    customer,
    prices: [{ price, quantity: cart.quantity }],
    metadata,
    description,
    method,
    billingMode: account.settings.billingMode,
  });
  account.objects.subscriptions[subscription.id] = subscription;
  cart.subscription = subscription.id;
  emit(account, "customer.subscription.created", subscription);
  return finish(account, session, cart, startBilling(account, subscription, true).outcome);
}

function buyerOf(account: Account, session: CheckoutSession): string {
  const customer = createCustomer(account, { email: session.customer_email ?? "buyer@example.com" });
  session.customer = customer.id;
  return customer.id;
}

/** The person confirmed the payment with the bank. */
export function confirmCheckout(account: Account, id: string): Outcome {
  const session = need(account, "checkoutSessions", id);
  const cart = need(account, "carts", id);
  const subscription = find(account, "subscriptions", cart.subscription);
  if (session.status !== "open" || subscription?.status !== "incomplete")
    throw new Error(`nothing to confirm in checkout session ${id}`);
  const invoice = need(account, "invoices", subscription.latest_invoice!);
  return finish(account, session, cart, collect(account, invoice, { confirmed: true }));
}

function finish(account: Account, session: CheckoutSession, cart: Cart, outcome: Outcome): Outcome {
  if (outcome !== "paid") return outcome;
  const subscription = need(account, "subscriptions", cart.subscription!);
  const customer = need(account, "customers", subscription.customer);
  Object.assign(session, {
    status: "complete",
    payment_status: "paid",
    subscription: subscription.id,
    invoice: subscription.latest_invoice,
    url: null,
    customer_details: {
      address: null,
      business_name: null,
      email: customer.email,
      individual_name: null,
      name: customer.name ?? null,
      phone: null,
      tax_exempt: "none",
      tax_ids: [],
    },
  });
  emit(account, "checkout.session.completed", session);
  return outcome;
}

export function expireCheckout(account: Account, id: string): CheckoutSession {
  const session = need(account, "checkoutSessions", id);
  if (session.status !== "open")
    throw invalidRequest(
      `Only Checkout Sessions with a status in ["open"] can be expired. This Checkout Session has a status of ${session.status}.`,
    );
  session.status = "expired";
  session.url = null;
  emit(account, "checkout.session.expired", session);
  return session;
}

export function listCheckouts(account: Account, params: Params): CheckoutSession[] {
  return Object.values(account.objects.checkoutSessions).filter(
    (session) =>
      (!params.customer || session.customer === params.customer) &&
      (!params.status || session.status === params.status) &&
      (!params.subscription || session.subscription === params.subscription) &&
      (!params.customer_details?.email || session.customer_details?.email === params.customer_details.email),
  );
}
