import { change, emit, mergeMetadata, need, type Account } from "./stripeAccount.ts";
import * as catalog from "./stripeCatalog.ts";
import * as checkout from "./stripeCheckout.ts";
import { collect, voidInvoice } from "./stripeCollection.ts";
import * as customers from "./stripeCustomers.ts";
import { actionRequired, cardDeclined, invalidRequest } from "./stripeErrors.ts";
import { subscriptionOf } from "./stripeInvoices.ts";
import { listPage } from "./stripeLists.ts";
import type { Params } from "./stripeParams.ts";
import { pauseSubscription, resumeSubscription } from "./stripePauses.ts";
import { createRefund, intentOf } from "./stripePayments.ts";
import { createPortalSession } from "./stripePortal.ts";
import { createConfiguration, updateConfiguration } from "./stripePortalConfig.ts";
import * as schedules from "./stripeSchedules.ts";
import { newStripeId, type Invoice, type TestClock } from "./stripeState.ts";
import { createSubscription, deleteCustomer, listSubscriptions } from "./stripeSubscriptions.ts";
import { cancelSubscription, previewInvoice, updateSubscription } from "./stripeUpdates.ts";

/** One call: the account of the key, its checked parameters, the ids of the path, and what moves a test clock. */
export interface Call {
  account: Account;
  params: Params;
  id: string;
  path: string;
  advanceTestClock: (clock: TestClock, to: number) => void;
}
type Handler = (call: Call) => unknown;

function page<T extends { id: string; created?: number }>(list: (account: Account, params: Params) => T[]): Handler {
  return ({ account, params, path }) => listPage(list(account, params), params, path);
}

function matching(params: Params, names: string[]) {
  return (object: object) =>
    names.every((name) => params[name] === undefined || (object as Record<string, unknown>)[name] === params[name]);
}

const PRODUCTS: Record<string, Handler> = {
  "GET /v1/products": page(catalog.listProducts),
  "POST /v1/products": ({ account, params }) => catalog.createProduct(account, params),
  "GET /v1/products/{id}": ({ account, id }) => need(account, "products", id),
  "POST /v1/products/{id}": ({ account, id, params }) => catalog.updateProduct(account, id, params),
  "DELETE /v1/products/{id}": ({ account, id }) => catalog.deleteProduct(account, id),
  "GET /v1/prices": page(catalog.listPrices),
  "POST /v1/prices": ({ account, params }) => catalog.createPrice(account, params),
  "GET /v1/prices/{price}": ({ account, id }) => need(account, "prices", id),
  "POST /v1/prices/{price}": ({ account, id, params }) => catalog.updatePrice(account, id, params),
};

const CUSTOMERS: Record<string, Handler> = {
  "GET /v1/customers": page(customers.listCustomers),
  "POST /v1/customers": ({ account, params }) => customers.createCustomer(account, params),
  "GET /v1/customers/{customer}": ({ account, id }) => customers.getCustomer(account, id),
  "POST /v1/customers/{customer}": ({ account, id, params }) => customers.updateCustomer(account, id, params),
  "DELETE /v1/customers/{customer}": ({ account, id }) => deleteCustomer(account, id),
  "GET /v1/customers/{customer}/payment_methods": ({ account, id, params, path }) => {
    need(account, "customers", id);
    return listPage(customers.methodsOf(account, id), params, path);
  },
  "GET /v1/payment_methods": page((account, params) =>
    Object.values(account.objects.paymentMethods).filter(matching(params, ["customer", "type"])),
  ),
  "POST /v1/payment_methods": ({ account, params }) => customers.createPaymentMethod(account, params),
  "GET /v1/payment_methods/{payment_method}": ({ account, id }) => need(account, "paymentMethods", id),
  "POST /v1/payment_methods/{payment_method}/attach": ({ account, id, params }) =>
    customers.attachPaymentMethod(account, id, params.customer ?? ""),
  "POST /v1/payment_methods/{payment_method}/detach": ({ account, id }) => customers.detachPaymentMethod(account, id),
};

const CHECKOUT: Record<string, Handler> = {
  "GET /v1/checkout/sessions": page(checkout.listCheckouts),
  "POST /v1/checkout/sessions": ({ account, params }) => checkout.createCheckout(account, params),
  "GET /v1/checkout/sessions/{session}": ({ account, id }) => need(account, "checkoutSessions", id),
  "POST /v1/checkout/sessions/{session}": ({ account, id, params }) => {
    const session = need(account, "checkoutSessions", id);
    session.metadata = mergeMetadata(session.metadata, params.metadata);
    return session;
  },
  "POST /v1/checkout/sessions/{session}/expire": ({ account, id }) => checkout.expireCheckout(account, id),
  "GET /v1/checkout/sessions/{session}/line_items": ({ account, id, params, path }) =>
    listPage(checkout.checkoutLines(account, id), params, path),
  "POST /v1/billing_portal/sessions": ({ account, params }) => createPortalSession(account, params),
  "GET /v1/billing_portal/configurations": page((account, params) =>
    Object.values(account.objects.portalConfigurations).filter(matching(params, ["active", "is_default"])),
  ),
  "POST /v1/billing_portal/configurations": ({ account, params }) => createConfiguration(account, params),
  "GET /v1/billing_portal/configurations/{configuration}": ({ account, id }) =>
    need(account, "portalConfigurations", id),
  "POST /v1/billing_portal/configurations/{configuration}": ({ account, id, params }) =>
    updateConfiguration(account, id, params),
};

const SUBSCRIPTIONS: Record<string, Handler> = {
  "GET /v1/subscriptions": page(listSubscriptions),
  "POST /v1/subscriptions": ({ account, params }) => createSubscription(account, params),
  "GET /v1/subscriptions/{subscription_exposed_id}": ({ account, id }) => need(account, "subscriptions", id),
  "POST /v1/subscriptions/{subscription_exposed_id}": ({ account, id, params }) =>
    updateSubscription(account, id, params),
  "DELETE /v1/subscriptions/{subscription_exposed_id}": ({ account, id, params }) =>
    cancelSubscription(account, id, params),
  "POST /v1/subscriptions/{subscription}/pause": ({ account, id, params }) => pauseSubscription(account, id, params),
  "POST /v1/subscriptions/{subscription}/resume": ({ account, id, params }) => resumeSubscription(account, id, params),
  "GET /v1/subscription_schedules": page((account, params) =>
    Object.values(account.objects.schedules).filter(matching(params, ["customer"])),
  ),
  "POST /v1/subscription_schedules": ({ account, params }) => schedules.createSchedule(account, params),
  "GET /v1/subscription_schedules/{schedule}": ({ account, id }) => need(account, "schedules", id),
  "POST /v1/subscription_schedules/{schedule}": ({ account, id, params }) =>
    schedules.updateSchedule(account, id, params),
  "POST /v1/subscription_schedules/{schedule}/cancel": ({ account, id }) => schedules.cancelSchedule(account, id),
  "POST /v1/subscription_schedules/{schedule}/release": ({ account, id }) => schedules.releaseSchedule(account, id),
};

function listInvoices(account: Account, params: Params): Invoice[] {
  return Object.values(account.objects.invoices)
    .filter(matching(params, ["customer", "status", "collection_method"]))
    .filter((invoice) => !params.subscription || subscriptionOf(invoice) === params.subscription);
}

/** A failed try is written down and then answered as an error. */
function payInvoice({ account, id, params }: Call): Invoice {
  const invoice = need(account, "invoices", id);
  if (invoice.status === "paid") throw invalidRequest("Invoice is already paid", { code: "invoice_already_paid" });
  if (invoice.status !== "open")
    throw invalidRequest(`This invoice can no longer be paid. Its status is ${invoice.status}.`);
  if (params.payment_method) need(account, "paymentMethods", params.payment_method, "payment_method");
  const outcome = collect(account, invoice, params.payment_method ? { method: params.payment_method } : {});
  const intent = outcome === "paid" ? null : intentOf(account, invoice);
  if (outcome === "declined") throw cardDeclined(intent!.latest_charge, intent);
  if (outcome === "requires_action") throw actionRequired("invoice_payment_intent_requires_action", intent);
  if (outcome === "no_method")
    throw invalidRequest("There is no `default_payment_method` set on this Customer or Invoice.", {
      code: "invoice_no_payment_method_types",
    });
  return invoice;
}

const INVOICES: Record<string, Handler> = {
  "GET /v1/invoices": page(listInvoices),
  "GET /v1/invoices/{invoice}": ({ account, id }) => need(account, "invoices", id),
  "POST /v1/invoices/{invoice}/pay": payInvoice,
  "POST /v1/invoices/{invoice}/void": ({ account, id }) => {
    const invoice = need(account, "invoices", id);
    if (invoice.status !== "open" && invoice.status !== "uncollectible")
      throw invalidRequest(`You can only pass in open invoices. This invoice isn't open.`);
    voidInvoice(account, invoice);
    return invoice;
  },
  "GET /v1/invoices/{invoice}/lines": ({ account, id, params, path }) =>
    listPage(need(account, "invoices", id).lines.data.toReversed(), params, path),
  "POST /v1/invoices/create_preview": ({ account, params }) => previewInvoice(account, params),
  "GET /v1/invoice_payments": page((account, params) =>
    Object.values(account.objects.invoicePayments).filter(
      (payment) =>
        matching(params, ["invoice", "status"])(payment) &&
        (!params.payment?.payment_intent || payment.payment.payment_intent === params.payment.payment_intent),
    ),
  ),
  "GET /v1/invoice_payments/{invoice_payment}": ({ account, id }) => need(account, "invoicePayments", id),
};

const PAYMENTS: Record<string, Handler> = {
  "GET /v1/refunds": page((account, params) =>
    Object.values(account.objects.refunds).filter(matching(params, ["charge", "payment_intent"])),
  ),
  "POST /v1/refunds": ({ account, params }) => createRefund(account, params),
  "GET /v1/refunds/{refund}": ({ account, id }) => need(account, "refunds", id),
  "GET /v1/disputes": page((account, params) =>
    Object.values(account.objects.disputes).filter(matching(params, ["charge", "payment_intent"])),
  ),
  "GET /v1/disputes/{dispute}": ({ account, id }) => need(account, "disputes", id),
  "GET /v1/charges": page((account, params) =>
    Object.values(account.objects.charges).filter(matching(params, ["customer", "payment_intent"])),
  ),
  "GET /v1/charges/{charge}": ({ account, id }) => need(account, "charges", id),
  "GET /v1/payment_intents": page((account, params) =>
    Object.values(account.objects.paymentIntents).filter(matching(params, ["customer"])),
  ),
  "GET /v1/payment_intents/{intent}": ({ account, id }) => need(account, "paymentIntents", id),
};

function createTestClock({ account, params }: Call): TestClock {
  if (account.live) throw invalidRequest("Test clocks exist in test mode only.");
  const clock: TestClock = {
    id: newStripeId("clock"),
    object: "test_helpers.test_clock",
    created: account.now(),
    deletes_after: account.now() + 30 * 86_400,
    frozen_time: params.frozen_time,
    livemode: false,
    name: params.name ?? null,
    status: "ready",
    status_details: {},
  };
  account.objects.testClocks[clock.id] = clock;
  emit(account, "test_helpers.test_clock.created", clock);
  return clock;
}

const EVENTS_AND_CLOCKS: Record<string, Handler> = {
  "GET /v1/events": page((account, params) =>
    Object.values(account.objects.events).filter(
      (event) => (!params.type || event.type === params.type) && (!params.types || params.types.includes(event.type)),
    ),
  ),
  "GET /v1/events/{id}": ({ account, id }) => need(account, "events", id),
  "GET /v1/test_helpers/test_clocks": page((account) => Object.values(account.objects.testClocks)),
  "POST /v1/test_helpers/test_clocks": createTestClock,
  "GET /v1/test_helpers/test_clocks/{test_clock}": ({ account, id }) => need(account, "testClocks", id),
  "DELETE /v1/test_helpers/test_clocks/{test_clock}": ({ account, id }) => {
    const clock = need(account, "testClocks", id);
    for (const customer of Object.values(account.objects.customers))
      if (customer.test_clock === id) deleteCustomer(account, customer.id);
    delete account.objects.testClocks[id];
    emit(account, "test_helpers.test_clock.deleted", clock);
    return { id, object: clock.object, deleted: true };
  },
  "POST /v1/test_helpers/test_clocks/{test_clock}/advance": ({ account, id, params, advanceTestClock }) => {
    const clock = need(account, "testClocks", id);
    if (params.frozen_time <= clock.frozen_time)
      throw invalidRequest("You can only advance a test clock into the future.", { param: "frozen_time" });
    change(account, "test_helpers.test_clock.ready", clock, () => advanceTestClock(clock, params.frozen_time));
    return clock;
  },
};

/** What answers each operation of stripeParams. */
export const ROUTES: Record<string, Handler> = {
  ...PRODUCTS,
  ...CUSTOMERS,
  ...CHECKOUT,
  ...SUBSCRIPTIONS,
  ...INVOICES,
  ...PAYMENTS,
  ...EVENTS_AND_CLOCKS,
};

/** The operation of a method and a path, and the id in it; null when there is none. */
export function matchRoute(method: string, path: string): { operation: string; id: string } | null {
  const parts = path.split("/");
  let best: { operation: string; id: string } | null = null;
  for (const operation of Object.keys(ROUTES)) {
    const [verb, template = ""] = operation.split(" ");
    const wanted = template.split("/");
    if (verb !== method || wanted.length !== parts.length) continue;
    if (!wanted.every((part, index) => part.startsWith("{") || part === parts[index])) continue;
    const at = wanted.findIndex((part) => part.startsWith("{"));
    // A name spelled out goes before an id: create_preview is no invoice.
    if (at < 0) return { operation, id: "" };
    best = { operation, id: decodeURIComponent(parts[at]!) };
  }
  return best;
}
