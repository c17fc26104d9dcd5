import type Stripe from "stripe";
import { change, emit, find, mergeMetadata, need, type Account } from "./stripeAccount.ts";
import { invalidRequest } from "./stripeErrors.ts";
import type { Params } from "./stripeParams.ts";
import { decimal, newStripeId, type Price, type Product } from "./stripeState.ts";

export function createProduct(account: Account, params: Params): Product {
  const id = params.id ?? newStripeId("prod");
  if (find(account, "products", id))
    throw invalidRequest(`Product already exists.`, { code: "resource_already_exists", param: "id" });
  const product: Product = {
    id,
    object: "product",
    active: params.active ?? true,
    created: account.now(),
    default_price: null,
    description: params.description ?? null,
    images: params.images ?? [],
    livemode: account.live,
    marketing_features: params.marketing_features ?? [],
    metadata: params.metadata ?? {},
    name: params.name,
    package_dimensions: null,
    shippable: params.shippable ?? null,
    statement_descriptor: params.statement_descriptor ?? null,
    tax_code: params.tax_code ?? null,
    tax_details: null,
    type: params.type ?? "service",
    unit_label: params.unit_label ?? null,
    updated: account.now(),
    url: params.url ?? null,
  };
  account.objects.products[id] = product;
  emit(account, "product.created", product);
  if (params.default_price_data)
    product.default_price = createPrice(account, { ...params.default_price_data, product: id }).id;
  return product;
}

export function updateProduct(account: Account, id: string, params: Params): Product {
  const product = need(account, "products", id);
  if (params.default_price) need(account, "prices", params.default_price, "default_price");
  change(account, "product.updated", product, () => {
    const { metadata, expand: _, ...rest } = params;
    Object.assign(product, Object.fromEntries(Object.entries(rest).map(([key, value]) => [key, unset(value)])));
    product.metadata = mergeMetadata(product.metadata, metadata);
    product.updated = account.now();
  });
  return product;
}

/** An empty value takes away what was there; false stays false. */
function unset(value: unknown): unknown {
  return value === "" ? null : value;
}

export function deleteProduct(account: Account, id: string) {
  const product = need(account, "products", id);
  if (Object.values(account.objects.prices).some((price) => price.product === id))
    throw invalidRequest("This product cannot be deleted because it has one or more user-created prices.");
  delete account.objects.products[id];
  emit(account, "product.deleted", product);
  return { id, object: "product" as const, deleted: true as const };
}

export function createPrice(account: Account, params: Params): Price {
  if (!params.product && !params.product_data)
    throw invalidRequest("You must pass either `product` or `product_data`.", { code: "parameter_missing" });
  if (params.unit_amount === undefined && params.unit_amount_decimal === undefined)
    throw invalidRequest("Either `unit_amount`, `unit_amount_decimal`, or `custom_unit_amount` is required.", {
      code: "parameter_missing",
    });
  if (params.product) need(account, "products", params.product, "product");
  if (params.lookup_key) takeLookupKey(account, params.lookup_key, params.transfer_lookup_key === true);
  const product = params.product_data ? createProduct(account, params.product_data).id : params.product;
  const amount: number = params.unit_amount ?? Number(params.unit_amount_decimal);
  const price: Price = {
    id: newStripeId("price"),
    object: "price",
    active: params.active ?? true,
    billing_scheme: params.billing_scheme ?? "per_unit",
    created: account.now(),
    currency: params.currency,
    custom_unit_amount: null,
    livemode: account.live,
    lookup_key: params.lookup_key ?? null,
    metadata: params.metadata ?? {},
    nickname: params.nickname ?? null,
    product,
    recurring: params.recurring ? recurringOf(params.recurring) : null,
    tax_behavior: params.tax_behavior ?? "unspecified",
    tiers_mode: null,
    transform_quantity: null,
    type: params.recurring ? "recurring" : "one_time",
    unit_amount: Number.isInteger(amount) ? amount : null,
    unit_amount_decimal: decimal(amount),
  };
  account.objects.prices[price.id] = price;
  emit(account, "price.created", price);
  return price;
}

function recurringOf(given: Params): Stripe.Price.Recurring {
  return {
    interval: given.interval,
    interval_count: given.interval_count ?? 1,
    meter: given.meter ?? null,
    trial_period_days: given.trial_period_days ?? null,
    usage_type: given.usage_type ?? "licensed",
  };
}

/** A lookup key belongs to one price; another gets it only when the request says so. */
function takeLookupKey(account: Account, key: string, transfer: boolean, self?: string): void {
  const owner = Object.values(account.objects.prices).find((price) => price.lookup_key === key && price.id !== self);
  if (!owner) return;
  if (!transfer)
    throw invalidRequest(
      `A price (\`${owner.id}\`) already uses that lookup key. You may pass \`transfer_lookup_key=true\` to move it.`,
      { param: "lookup_key", code: "resource_already_exists" },
    );
  change(account, "price.updated", owner, () => void (owner.lookup_key = null));
}

export function updatePrice(account: Account, id: string, params: Params): Price {
  const price = need(account, "prices", id);
  if (params.lookup_key) takeLookupKey(account, params.lookup_key, params.transfer_lookup_key === true, id);
  change(account, "price.updated", price, () => {
    if (params.active !== undefined) price.active = params.active;
    if (params.lookup_key !== undefined) price.lookup_key = params.lookup_key || null;
    if (params.nickname !== undefined) price.nickname = params.nickname || null;
    if (params.tax_behavior !== undefined) price.tax_behavior = params.tax_behavior;
    price.metadata = mergeMetadata(price.metadata, params.metadata);
  });
  return price;
}

/** A price that a subscription can be sold at. `param` names it in the complaint. */
export function needRecurringPrice(account: Account, id: string, param: string): Price {
  const price = need(account, "prices", id, param);
  if (!price.active)
    throw invalidRequest(`The price specified is inactive. This field only accepts active prices.`, {
      param,
      code: "price_inactive",
    });
  if (!price.recurring)
    throw invalidRequest(
      "The price specified is set to `type=one_time` but this field only accepts prices with `type=recurring`.",
      { param },
    );
  return price;
}

export function listPrices(account: Account, params: Params): Price[] {
  return Object.values(account.objects.prices).filter(
    (price) =>
      (params.active === undefined || price.active === params.active) &&
      (!params.lookup_keys || params.lookup_keys.includes(price.lookup_key)) &&
      (!params.product || price.product === params.product) &&
      (!params.type || price.type === params.type) &&
      (!params.currency || price.currency === params.currency) &&
      (!params.recurring?.interval || price.recurring?.interval === params.recurring.interval),
  );
}

export function listProducts(account: Account, params: Params): Product[] {
  return Object.values(account.objects.products).filter(
    (product) =>
      (params.active === undefined || product.active === params.active) &&
      (!params.ids || params.ids.includes(product.id)),
  );
}
