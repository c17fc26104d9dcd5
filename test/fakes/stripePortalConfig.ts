import { change, emit, mergeMetadata, need, type Account } from "./stripeAccount.ts";
import { invalidRequest } from "./stripeErrors.ts";
import type { Params } from "./stripeParams.ts";
import { newStripeId, type PortalConfiguration } from "./stripeState.ts";

export type Features = PortalConfiguration["features"];

function featuresOf(given: Params, base: Features): Features {
  const update = given.subscription_update ?? {};
  const cancel = given.subscription_cancel ?? {};
  return {
    customer_update: { ...base.customer_update, ...given.customer_update },
    invoice_history: { ...base.invoice_history, ...given.invoice_history },
    payment_method_update: { ...base.payment_method_update, ...given.payment_method_update },
    subscription_cancel: {
      ...base.subscription_cancel,
      ...cancel,
      cancellation_reason: { ...base.subscription_cancel.cancellation_reason, ...cancel.cancellation_reason },
    },
    subscription_pause: { ...base.subscription_pause, ...given.subscription_pause },
    subscription_update: {
      ...base.subscription_update,
      ...update,
      default_allowed_updates: update.default_allowed_updates || base.subscription_update.default_allowed_updates,
      schedule_at_period_end: {
        conditions:
          update.schedule_at_period_end?.conditions || base.subscription_update.schedule_at_period_end.conditions,
      },
    },
  };
}

const NOTHING: Features = {
  customer_update: { allowed_updates: [], enabled: false },
  invoice_history: { enabled: false },
  payment_method_update: { enabled: false, payment_method_configuration: null },
  subscription_cancel: {
    cancellation_reason: { enabled: false, feedback_options: null, options: [] },
    enabled: false,
    mode: "at_period_end",
    proration_behavior: "none",
  },
  subscription_pause: { duration: { interval_options: [], type: "indefinite" }, enabled: false },
  subscription_update: {
    billing_cycle_anchor: null,
    default_allowed_updates: [],
    enabled: false,
    products: null,
    proration_behavior: "none",
    schedule_at_period_end: { conditions: [] },
    trial_update_behavior: "end_trial",
  },
};

/** As if the dashboard had been set so: everything Reef uses is allowed, a cheaper plan waits for the period's end. */
const DASHBOARD: Params = {
  invoice_history: { enabled: true },
  payment_method_update: { enabled: true },
  subscription_cancel: { enabled: true },
  subscription_update: {
    enabled: true,
    default_allowed_updates: ["price"],
    proration_behavior: "always_invoice",
    schedule_at_period_end: { conditions: [{ type: "decreasing_item_amount" }, { type: "shortening_interval" }] },
  },
};

export function createConfiguration(account: Account, params: Params, isDefault = false): PortalConfiguration {
  const now = account.now();
  const configuration: PortalConfiguration = {
    id: newStripeId("bpc"),
    object: "billing_portal.configuration",
    active: true,
    application: null,
    business_profile: {
      headline: null,
      privacy_policy_url: null,
      terms_of_service_url: null,
      ...params.business_profile,
    },
    created: now,
    default_return_url: params.default_return_url || null,
    features: featuresOf(params.features ?? {}, NOTHING),
    is_default: isDefault,
    livemode: account.live,
    login_page: { enabled: params.login_page?.enabled ?? false, url: null },
    metadata: params.metadata ?? {},
    name: params.name || null,
    updated: now,
  };
  checkUpdateProducts(account, configuration.features);
  account.objects.portalConfigurations[configuration.id] = configuration;
  emit(account, "billing_portal.configuration.created", configuration);
  return configuration;
}

function checkUpdateProducts(account: Account, features: Features): void {
  for (const [index, { product, prices }] of (features.subscription_update.products || []).entries()) {
    const param = `features[subscription_update][products][${index}]`;
    need(account, "products", product, `${param}[product]`);
    for (const [at, id] of prices.entries()) {
      const price = need(account, "prices", id, `${param}[prices][${at}]`);
      if (price.product !== product)
        throw invalidRequest(`The price ${id} does not belong to the product ${product}.`, { param });
    }
  }
}

export function updateConfiguration(account: Account, id: string, params: Params): PortalConfiguration {
  const configuration = need(account, "portalConfigurations", id);
  const features = featuresOf(params.features ?? {}, configuration.features);
  checkUpdateProducts(account, features);
  change(account, "billing_portal.configuration.updated", configuration, () => {
    configuration.features = features;
    if (params.active !== undefined) configuration.active = params.active;
    if (params.default_return_url !== undefined) configuration.default_return_url = params.default_return_url || null;
    if (params.name !== undefined) configuration.name = params.name || null;
    configuration.business_profile = { ...configuration.business_profile, ...params.business_profile };
    configuration.metadata = mergeMetadata(configuration.metadata, params.metadata);
    configuration.updated = account.now();
  });
  return configuration;
}

export function defaultConfiguration(account: Account): PortalConfiguration {
  const known = Object.values(account.objects.portalConfigurations).find((one) => one.is_default);
  return known ?? createConfiguration(account, { features: DASHBOARD }, true);
}
