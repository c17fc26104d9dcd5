import { find, type Account } from "./stripeAccount.ts";
import { checkoutLines } from "./stripeCheckout.ts";
import { invalidRequest } from "./stripeErrors.ts";
import type { Params } from "./stripeParams.ts";
import { paymentsOf } from "./stripePayments.ts";
import { wholeList, type Objects } from "./stripeState.ts";

/** A page, newest first as Stripe lists them. `objects`: oldest first, already filtered. */
export function listPage<T extends { id: string; created?: number }>(objects: T[], params: Params, url: string) {
  const limit: number = params.limit ?? 10;
  if (limit < 1 || limit > 100)
    throw invalidRequest("This value must be greater than or equal to 1 (it currently is '" + limit + "').", {
      code: "parameter_invalid_integer",
      param: "limit",
    });
  if (params.starting_after && params.ending_before)
    throw invalidRequest("You may only specify one of these parameters: ending_before, starting_after.");
  const all = objects.filter((object) => isWithin(object.created, params.created)).reverse();
  const from = params.starting_after ? indexOf(all, params.starting_after, "starting_after") + 1 : 0;
  const to = params.ending_before ? indexOf(all, params.ending_before, "ending_before") : all.length;
  const window = all.slice(from, to);
  const data = params.ending_before ? window.slice(-limit) : window.slice(0, limit);
  return { object: "list" as const, data, has_more: window.length > data.length, url };
}

function indexOf(all: { id: string }[], id: string, param: string): number {
  const index = all.findIndex((object) => object.id === id);
  if (index < 0) throw invalidRequest(`No such object: '${id}'`, { code: "resource_missing", param });
  return index;
}

function isWithin(created: number | undefined, range: Params | number | undefined): boolean {
  if (range === undefined || created === undefined) return true;
  if (typeof range === "number") return created === range;
  return (
    (range.gt === undefined || created > range.gt) &&
    (range.gte === undefined || created >= range.gte) &&
    (range.lt === undefined || created < range.lt) &&
    (range.lte === undefined || created <= range.lte)
  );
}

const TABLES: Record<string, keyof Objects> = {
  bpc: "portalConfigurations",
  ch: "charges",
  clock: "testClocks",
  cs: "checkoutSessions",
  cus: "customers",
  du: "disputes",
  ii: "invoiceItems",
  in: "invoices",
  inpay: "invoicePayments",
  pi: "paymentIntents",
  pm: "paymentMethods",
  price: "prices",
  prod: "products",
  re: "refunds",
  sub: "subscriptions",
  sub_sched: "schedules",
};
/** Fields that are only there when asked for. */
const INCLUDABLE: Record<string, Record<string, (account: Account, object: any) => unknown>> = {
  "checkout.session": {
    line_items: (account, { id }) => wholeList(checkoutLines(account, id), `/v1/checkout/sessions/${id}/line_items`),
  },
  customer: {
    subscriptions: (account, { id }) =>
      wholeList(
        Object.values(account.objects.subscriptions).filter((one) => one.customer === id && one.status !== "canceled"),
        `/v1/customers/${id}/subscriptions`,
      ),
  },
  invoice: {
    confirmation_secret: (account, { id }) => {
      const intent = paymentsOf(account, id).at(-1)?.payment.payment_intent;
      const secret = typeof intent === "string" ? find(account, "paymentIntents", intent)?.client_secret : null;
      return secret ? { client_secret: secret, type: "payment_intent" } : null;
    },
    payments: (account, { id }) => wholeList(paymentsOf(account, id), "/v1/invoice_payments"),
  },
  charge: {
    refunds: (account, { id }) =>
      wholeList(
        Object.values(account.objects.refunds).filter((refund) => refund.charge === id),
        `/v1/charges/${id}/refunds`,
      ),
  },
};

/** A copy of an answer with what `expand` names filled in. */
export function expandObject(account: Account, object: unknown, paths: string[] = []): unknown {
  const copy = structuredClone(object);
  for (const path of paths) {
    const parts = path.split(".");
    if (parts.length > 4)
      throw invalidRequest("You cannot expand more than 4 levels of a property.", { param: "expand" });
    expandPath(account, copy, parts, path);
  }
  return copy;
}

function expandPath(account: Account, object: unknown, [head, ...rest]: string[], path: string): void {
  if (head === undefined || object === null || object === undefined) return;
  if (Array.isArray(object)) {
    for (const one of object) expandPath(account, one, [head, ...rest], path);
    return;
  }
  const owner = object as Record<string, unknown>;
  owner[head] = expandField(account, owner, head, path);
  expandPath(account, owner[head], rest, path);
}

function expandField(account: Account, owner: Record<string, unknown>, field: string, path: string): unknown {
  const include = INCLUDABLE[String(owner.object)]?.[field];
  if (include) return structuredClone(include(account, owner));
  if (!(field in owner))
    throw invalidRequest(
      `This property cannot be expanded (${path}). You may want to try expanding a different property.`,
      { param: "expand" },
    );
  const value = owner[field];
  if (Array.isArray(value)) return value.map((one) => (typeof one === "string" ? fetchById(account, one) : one));
  return typeof value === "string" ? fetchById(account, value) : value;
}

function fetchById(account: Account, id: string): unknown {
  const table = TABLES[id.slice(0, id.lastIndexOf("_"))] ?? TABLES[id.split("_", 1)[0]!];
  if (!table) return id;
  if (find(account, "deletedCustomers", id)) return { id, object: "customer", deleted: true };
  return structuredClone(find(account, table, id)) ?? id;
}
