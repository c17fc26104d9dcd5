import { change, emit, find, mergeMetadata, need, type Account } from "./stripeAccount.ts";
import { invalidRequest } from "./stripeErrors.ts";
import type { Params } from "./stripeParams.ts";
import { newStripeId, type Card, type Customer, type PaymentMethod } from "./stripeState.ts";

/** Stripe's own test cards: the token, the last digits, and what the bank says. */
const TEST_CARDS: Record<string, { last4: string; card: Card }> = {
  pm_card_visa: { last4: "4242", card: "ok" },
  pm_card_mastercard: { last4: "4444", card: "ok" },
  pm_card_chargeCustomerFail: { last4: "0341", card: "declined" },
  pm_card_authenticationRequired: { last4: "3184", card: "requires_action" },
};
const TOKENS: Record<string, string> = {
  tok_visa: "pm_card_visa",
  tok_mastercard: "pm_card_mastercard",
  tok_chargeCustomerFail: "pm_card_chargeCustomerFail",
  tok_threeDSecure2Required: "pm_card_authenticationRequired",
};
const TOKEN_OF: Record<Card, string> = {
  ok: "pm_card_visa",
  declined: "pm_card_chargeCustomerFail",
  requires_action: "pm_card_authenticationRequired",
};

export function createCustomer(account: Account, params: Params): Customer {
  if (params.test_clock) need(account, "testClocks", params.test_clock, "test_clock");
  const clock = find(account, "testClocks", params.test_clock ?? null);
  const customer: Customer = {
    id: newStripeId("cus"),
    object: "customer",
    address: null,
    balance: params.balance ?? 0,
    created: clock?.frozen_time ?? account.now(),
    currency: null,
    customer_account: null,
    default_source: null,
    delinquent: false,
    description: params.description || null,
    discount: null,
    email: params.email || null,
    invoice_prefix: newStripeId("x").slice(3, 11).toUpperCase(),
    invoice_settings: { custom_fields: null, default_payment_method: null, footer: null, rendering_options: null },
    livemode: account.live,
    metadata: mergeMetadata({}, params.metadata),
    name: params.name || null,
    next_invoice_sequence: 1,
    phone: params.phone || null,
    preferred_locales: params.preferred_locales ?? [],
    shipping: null,
    tax_exempt: params.tax_exempt || "none",
    test_clock: params.test_clock ?? null,
  };
  account.objects.customers[customer.id] = customer;
  if (params.payment_method) attachPaymentMethod(account, params.payment_method, customer.id);
  emit(account, "customer.created", customer);
  setDefaultMethod(account, customer, params);
  return customer;
}

function setDefaultMethod(account: Account, customer: Customer, params: Params): void {
  const given = params.invoice_settings?.default_payment_method;
  if (given === undefined) return;
  const method = given === "" ? null : ownMethod(account, customer.id, given);
  customer.invoice_settings.default_payment_method = method;
}

/** The customer's own payment method: by id, or by the test card it was attached from. */
function ownMethod(account: Account, customerId: string, given: string): string {
  const own = methodsOf(account, customerId);
  const test = TEST_CARDS[given];
  const method = own.find(({ id, card }) => id === given || (test && card?.last4 === test.last4));
  if (method) return method.id;
  need(account, "paymentMethods", given, "invoice_settings[default_payment_method]");
  throw invalidRequest(
    "The customer does not have a payment method with the ID " +
      given +
      ". The payment method must be attached to the customer.",
    { code: "resource_missing", param: "invoice_settings[default_payment_method]" },
  );
}

export function updateCustomer(account: Account, id: string, params: Params): Customer {
  const customer = need(account, "customers", id);
  change(account, "customer.updated", customer, () => {
    for (const name of ["description", "email", "name", "phone"] as const)
      if (params[name] !== undefined) customer[name] = params[name] || null;
    if (params.balance !== undefined) customer.balance = params.balance;
    customer.metadata = mergeMetadata(customer.metadata, params.metadata);
    setDefaultMethod(account, customer, params);
  });
  return customer;
}

/** A customer that was deleted answers with almost nothing; one that never was, is a 404. */
export function getCustomer(
  account: Account,
  id: string,
): Customer | { id: string; object: "customer"; deleted: true } {
  if (find(account, "deletedCustomers", id)) return { id, object: "customer", deleted: true };
  return need(account, "customers", id);
}

/** Only the record: ending the subscriptions comes before, see deleteCustomer in stripeSubscriptions. */
export function forgetCustomer(account: Account, id: string) {
  const customer = need(account, "customers", id);
  for (const method of methodsOf(account, id)) {
    delete account.objects.paymentMethods[method.id];
    delete account.objects.cards[method.id];
  }
  emit(account, "customer.deleted", customer);
  delete account.objects.customers[id];
  account.objects.deletedCustomers[id] = { id };
  return { id, object: "customer" as const, deleted: true as const };
}

export function listCustomers(account: Account, params: Params): Customer[] {
  return Object.values(account.objects.customers).filter(
    (customer) =>
      (!params.email || customer.email === params.email) &&
      (!params.test_clock ? customer.test_clock === null : customer.test_clock === params.test_clock),
  );
}

export function methodsOf(account: Account, customerId: string): PaymentMethod[] {
  return Object.values(account.objects.paymentMethods).filter((method) => method.customer === customerId);
}

function makeMethod(account: Account, test: { last4: string; card: Card }, metadata: Record<string, string> = {}) {
  const method: PaymentMethod = {
    id: newStripeId("pm"),
    object: "payment_method",
    allow_redisplay: "unspecified",
    billing_details: { address: null, email: null, name: null, phone: null, tax_id: null },
    card: {
      brand: test.last4 === "4444" ? "mastercard" : "visa",
      checks: { address_line1_check: null, address_postal_code_check: null, cvc_check: "pass" },
      country: "US",
      display_brand: "visa",
      exp_month: 12,
      exp_year: new Date(account.now() * 1000).getUTCFullYear() + 3,
      fingerprint: newStripeId("f").slice(3, 19),
      funding: "credit",
      generated_from: null,
      last4: test.last4,
      networks: { available: ["visa"], preferred: null },
      regulated_status: "unregulated",
      three_d_secure_usage: { supported: true },
      wallet: null,
    },
    created: account.now(),
    customer: null,
    customer_account: null,
    livemode: account.live,
    metadata,
    type: "card",
  };
  account.objects.paymentMethods[method.id] = method;
  account.objects.cards[method.id] = test.card;
  return method;
}

/** From a test token, as the browser would have made it: `card[token]=tok_visa`. */
export function createPaymentMethod(account: Account, params: Params): PaymentMethod {
  if (params.type !== "card") throw invalidRequest("This double of Stripe knows only cards.", { param: "type" });
  const token = TOKENS[params.card?.token ?? ""];
  if (!token)
    throw invalidRequest(
      "Sending credit card numbers directly to the Stripe API is generally unsafe. To continue processing use Stripe.js or test tokens.",
      { param: "card" },
    );
  return makeMethod(account, TEST_CARDS[token]!, params.metadata);
}

export function attachPaymentMethod(account: Account, id: string, customerId: string): PaymentMethod {
  need(account, "customers", customerId, "customer");
  const test = TEST_CARDS[id];
  const method = test ? makeMethod(account, test) : need(account, "paymentMethods", id);
  method.customer = customerId;
  emit(account, "payment_method.attached", method);
  return method;
}

export function detachPaymentMethod(account: Account, id: string): PaymentMethod {
  const method = need(account, "paymentMethods", id);
  if (!method.customer)
    throw invalidRequest("The payment method you provided is not attached to a customer so detachment is impossible.");
  const owner = find(account, "customers", method.customer);
  if (owner?.invoice_settings.default_payment_method === id)
    change(account, "customer.updated", owner, () => void (owner.invoice_settings.default_payment_method = null));
  for (const subscription of Object.values(account.objects.subscriptions))
    if (subscription.default_payment_method === id)
      change(account, "customer.subscription.updated", subscription, () => {
        subscription.default_payment_method = null;
      });
  method.customer = null;
  emit(account, "payment_method.detached", method);
  return method;
}

/** A new card of the customer's that the bank answers for as `card` says. */
export function addCard(account: Account, customerId: string, card: Card): PaymentMethod {
  return attachPaymentMethod(account, TOKEN_OF[card], customerId);
}

/** The bank changes its mind about all cards of a customer. */
export function setCard(account: Account, customerId: string, card: Card): void {
  const customer = need(account, "customers", customerId);
  const methods = methodsOf(account, customerId);
  if (methods.length === 0) customer.invoice_settings.default_payment_method = addCard(account, customerId, card).id;
  for (const method of methods) account.objects.cards[method.id] = card;
}

/** The card that an invoice of this subscription is charged to. */
export function chargeableMethod(
  account: Account,
  customerId: string,
  subscription: { default_payment_method: string | null } | null,
): string | null {
  const customer = find(account, "customers", customerId);
  const fallback = customer?.invoice_settings.default_payment_method;
  return subscription?.default_payment_method ?? (typeof fallback === "string" ? fallback : null);
}
