/** A parameter's description, as in an OpenAPI file. Without a type: anything goes. */
export interface Schema {
  type?: string;
  enum?: string[];
  format?: string;
  maxLength?: number;
  required?: string[];
  anyOf?: Schema[];
  items?: Schema;
  properties?: Record<string, Schema>;
  additionalProperties?: Schema;
}

/** Where the SDK's API version differs from the description. Paths go through arrays and choices as if they were not there. */
interface ApiChange {
  operations: string[];
  /** By path: new parameters, or known ones of another type now. */
  add?: Record<string, Schema>;
  drop?: string[];
  /** No longer required. */
  optional?: string[];
}

/** The version that stripe 23.1.0 sends. */
export const API_VERSION = "2026-10-28.endive";

const any: Schema = {};
const text: Schema = { type: "string" };
const integer: Schema = { type: "integer" };
const flag: Schema = { type: "boolean" };
const empty: Schema = { type: "string", enum: [""] };
const metadata: Schema = { type: "object", additionalProperties: text };
const oneOf = (...values: string[]): Schema => ({ type: "string", enum: values });
const list = (items: Schema): Schema => ({ type: "array", items });
const emptyable = (schema: Schema): Schema => ({ anyOf: [schema, empty] });
/** A name that ends in `!` is required. */
function fields(shape: Record<string, Schema>): Schema {
  const properties = Object.fromEntries(Object.entries(shape).map(([name, schema]) => [name.replace("!", ""), schema]));
  const required = Object.keys(shape).flatMap((name) => (name.endsWith("!") ? [name.slice(0, -1)] : []));
  return { type: "object", properties, ...(required.length > 0 && { required }) };
}

const expand = list(text);
const range: Schema = { anyOf: [fields({ gt: integer, gte: integer, lt: integer, lte: integer }), integer] };
const paging = { ending_before: text, expand, limit: integer, starting_after: text };
const anchor = fields({ "type!": oneOf("now", "unchanged") });
const billingMode = fields({
  "type!": oneOf("classic", "flexible"),
  flexible: fields({ proration_discounts: oneOf("included", "itemized") }),
});
const discounts = emptyable(list(fields({ coupon: text, discount: text, promotion_code: text })));
const cancelAt: Schema = { anyOf: [oneOf("max_billed_until", "max_period_end", "min_period_end"), integer, empty] };
const issuer = fields({ "type!": oneOf("account", "self"), account: text });
const invoiceSettings = fields({ account_tax_ids: any, custom_fields: any, description: text, footer: text, issuer });
const portalFeatures = {
  "features.payment_method_update.payment_method_configuration": text,
  "features.subscription_cancel.cancellation_reason.feedback_options": emptyable(list(text)),
  "features.subscription_pause.duration": any,
  "features.subscription_update.billing_cycle_anchor": oneOf("now", "unchanged"),
  "features.subscription_update.products.adjustable_quantity": any,
  "features.subscription_update.schedule_at_period_end": fields({
    conditions: emptyable(list(fields({ "type!": oneOf("decreasing_item_amount", "shortening_interval") }))),
  }),
  "features.subscription_update.trial_update_behavior": oneOf("continue_trial", "end_trial"),
  name: text,
};
const subscriptionItem = fields({
  id: text,
  billing_thresholds: any,
  clear_usage: flag,
  current_trial: any,
  deleted: flag,
  discounts,
  metadata: emptyable(metadata),
  plan: text,
  price: text,
  price_data: any,
  quantity: integer,
  tax_rates: any,
});

const SUBSCRIPTION = "/v1/subscriptions/{subscription_exposed_id}";
const SCHEDULES = ["POST /v1/subscription_schedules", "POST /v1/subscription_schedules/{schedule}"];
const CONFIGURATION = "POST /v1/billing_portal/configurations/{configuration}";
const CUSTOMERS = ["POST /v1/customers", "POST /v1/customers/{customer}"];

/** Operations that are newer than the description. */
export const NEW_OPERATIONS: Record<string, Schema> = {
  "POST /v1/checkout/sessions/{session}": fields({
    collected_information: any,
    expand,
    line_items: any,
    metadata: emptyable(metadata),
    payment_intent_data: any,
    shipping_options: any,
  }),
  "POST /v1/subscriptions/{subscription}/pause": fields({
    bill_for: fields({
      outstanding_usage_through: fields({ "type!": oneOf("none", "now") }),
      unused_time_from: fields({ "type!": oneOf("item_current_period_start", "none", "now") }),
    }),
    expand,
    invoicing_behavior: oneOf("invoice", "pending_invoice_item"),
    type: oneOf("subscription"),
  }),
  "POST /v1/invoices/create_preview": fields({
    automatic_tax: any,
    currency: text,
    customer: text,
    customer_account: text,
    customer_details: any,
    discounts,
    expand,
    invoice_items: any,
    issuer,
    on_behalf_of: emptyable(text),
    preview_mode: oneOf("next", "recurring"),
    schedule: text,
    schedule_details: any,
    subscription: text,
    subscription_details: fields({
      billing_cycle_anchor: { anyOf: [anchor, integer] },
      billing_mode: billingMode,
      billing_schedules: any,
      cancel_at: cancelAt,
      cancel_at_period_end: flag,
      cancel_now: flag,
      default_tax_rates: any,
      items: list(subscriptionItem),
      metadata,
      pause: any,
      proration_behavior: oneOf("always_invoice", "create_prorations", "none"),
      proration_date: integer,
      resume_at: oneOf("now"),
      start_date: integer,
      trial_end: { anyOf: [oneOf("now"), integer] },
    }),
  }),
  "GET /v1/invoice_payments": fields({
    ...paging,
    created: range,
    invoice: text,
    payment: fields({ "type!": oneOf("payment_intent", "payment_record"), payment_intent: text, payment_record: text }),
    status: oneOf("canceled", "open", "paid"),
  }),
  "GET /v1/invoice_payments/{invoice_payment}": fields({ expand }),
};

export const API_CHANGES: ApiChange[] = [
  { operations: ["GET /v1/products"], add: { type: oneOf("good", "service") } },
  {
    operations: ["POST /v1/products", "POST /v1/products/{id}"],
    add: { marketing_features: emptyable(list(fields({ "name!": text }))), tax_details: any },
  },
  { operations: ["POST /v1/products"], add: { type: oneOf("good", "service") } },
  {
    operations: ["POST /v1/prices"],
    add: { "product_data.tax_details": any, "recurring.meter": text, "recurring.trial_period_days": integer },
    drop: ["recurring.aggregate_usage"],
  },
  {
    operations: CUSTOMERS,
    add: { business_name: emptyable(text), individual_name: emptyable(text), validate: flag },
    drop: ["coupon", "promotion_code"],
  },
  {
    operations: [CUSTOMERS[1]!],
    drop: ["bank_account", "card", "default_alipay_account", "default_bank_account", "default_card"],
  },
  {
    operations: ["GET /v1/checkout/sessions"],
    add: { created: range, customer_account: text, status: oneOf("complete", "expired", "open") },
  },
  {
    operations: ["POST /v1/checkout/sessions"],
    add: {
      adaptive_pricing: fields({ enabled: flag }),
      allowed_payment_method_types: list(text),
      "automatic_tax.liability": issuer,
      branding_settings: any,
      customer_account: text,
      excluded_payment_method_types: list(text),
      integration_identifier: text,
      "line_items.metadata": metadata,
      managed_payments: fields({ enabled: flag }),
      name_collection: any,
      optional_items: any,
      origin_context: oneOf("mobile_app", "web"),
      payment_method_configuration: text,
      permissions: any,
      redirect_on_completion: oneOf("always", "if_required", "never"),
      return_url: text,
      saved_payment_method_options: any,
      submit_type: oneOf("auto", "book", "donate", "pay", "subscribe"),
      "subscription_data.billing_cycle_anchor": integer,
      "subscription_data.billing_cycle_anchor_config": any,
      "subscription_data.billing_mode": billingMode,
      "subscription_data.invoice_settings": invoiceSettings,
      "subscription_data.pending_invoice_item_interval": any,
      "subscription_data.proration_behavior": oneOf("create_prorations", "none"),
      ui_mode: oneOf("elements", "embedded_page", "form", "hosted_page"),
      wallet_options: any,
    },
    drop: ["line_items.dynamic_tax_rates", "payment_method_types"],
    optional: ["success_url"],
  },
  {
    operations: ["POST /v1/billing_portal/sessions"],
    add: {
      after_expiration: any,
      customer_account: text,
      "flow_data.subscription_cancel.retention": any,
      "flow_data.subscription_pause": fields({ "subscription!": text }),
      "flow_data.subscription_update": fields({ "subscription!": text }),
      "flow_data.subscription_update_confirm": fields({
        discounts,
        "items!": list(fields({ "id!": text, price: text, quantity: integer })),
        "subscription!": text,
      }),
      "flow_data.type": oneOf(
        "customer_update",
        "payment_method_update",
        "subscription_cancel",
        "subscription_pause",
        "subscription_update",
        "subscription_update_confirm",
      ),
    },
    optional: ["customer"],
  },
  {
    operations: ["POST /v1/billing_portal/configurations"],
    add: portalFeatures,
    optional: [
      "business_profile",
      "features.subscription_update.default_allowed_updates",
      "features.subscription_update.products",
    ],
  },
  { operations: [CONFIGURATION], add: portalFeatures },
  {
    operations: ["GET /v1/subscriptions"],
    add: { automatic_tax: fields({ "enabled!": flag }), customer_account: text, plan: text },
  },
  {
    operations: ["POST /v1/subscriptions", `POST ${SUBSCRIPTION}`],
    add: {
      "automatic_tax.liability": issuer,
      billing_schedules: any,
      cancel_at: cancelAt,
      discounts,
      invoice_settings: invoiceSettings,
      "items.current_trial": any,
      "items.discounts": discounts,
      "items.plan": text,
      "trial_settings.end_behavior.billing_cycle_anchor": oneOf("now", "unchanged"),
    },
    drop: ["coupon", "promotion_code"],
    optional: ["trial_settings.end_behavior.missing_payment_method"],
  },
  {
    operations: ["POST /v1/subscriptions"],
    add: { billing_cycle_anchor_config: any, billing_mode: billingMode, customer_account: text },
    optional: ["customer"],
  },
  {
    operations: [`POST ${SUBSCRIPTION}`],
    add: { billing_cycle_anchor: anchor, "cancellation_details.feedback_option": text },
  },
  { operations: [`DELETE ${SUBSCRIPTION}`], add: { "cancellation_details.feedback_option": text } },
  {
    operations: ["POST /v1/subscriptions/{subscription}/resume"],
    add: {
      billing_cycle_anchor: anchor,
      payment_behavior: oneOf("resume_on_payment_attempt", "resume_on_payment_success"),
    },
  },
  {
    operations: SCHEDULES,
    add: {
      pause_schedules: any,
      "phases.discounts": discounts,
      "phases.duration": fields({ "interval!": oneOf("day", "month", "week", "year"), interval_count: integer }),
      "phases.items.discounts": discounts,
      "phases.items.plan": text,
    },
    drop: ["phases.coupon", "phases.iterations"],
  },
  { operations: [SCHEDULES[0]!], add: { billing_mode: billingMode, customer_account: text } },
  { operations: [SCHEDULES[1]!], add: { "phases.currency": text } },
  {
    operations: ["GET /v1/subscription_schedules", "GET /v1/invoices", "GET /v1/payment_intents"],
    add: { customer_account: text },
  },
  {
    operations: ["GET /v1/payment_methods", "GET /v1/customers/{customer}/payment_methods", "POST /v1/payment_methods"],
    add: { allow_redisplay: oneOf("always", "limited", "unspecified"), type: text },
  },
  {
    operations: ["GET /v1/payment_methods", "POST /v1/payment_methods/{payment_method}/attach"],
    add: { customer_account: text },
    optional: ["customer"],
  },
  { operations: ["POST /v1/test_helpers/test_clocks"], add: { customer: text } },
];
