import { API_CHANGES, NEW_OPERATIONS, type Schema } from "./stripeApiChanges.ts";
import { invalidParameter } from "./stripeErrors.ts";
import type { FormValue } from "./stripeForm.ts";
import description from "./stripeOpenApi.json" with { type: "json" };

/** Checked parameters with their types. */
export type Params = Record<string, any>;

/** Every operation that is answered, as `METHOD /v1/path/{id}`, with what it may be sent. */
export const OPERATIONS: Record<string, Schema> = withChanges(
  structuredClone({ ...description.operations, ...NEW_OPERATIONS }) as Record<string, Schema>,
);

function withChanges(operations: Record<string, Schema>): Record<string, Schema> {
  for (const { operations: names, add = {}, drop = [], optional = [] } of API_CHANGES) {
    for (const name of names) {
      const operation = operations[name];
      if (!operation) throw new Error(`no operation ${name} to change`);
      for (const [path, schema] of Object.entries(add)) edit(operation, path, (all, last) => void (all[last] = schema));
      for (const path of drop) edit(operation, path, (all, last) => delete all[last]);
      for (const path of optional)
        edit(operation, path, (_, last, owner) => {
          owner.required = (owner.required ?? []).filter((field) => field !== last);
        });
    }
  }
  return operations;
}

type Edit = (all: Record<string, Schema>, last: string, owner: Schema) => unknown;

function edit(operation: Schema, path: string, change: Edit): void {
  const parts = path.split(".");
  const last = parts.pop()!;
  let owners = objectsIn(operation);
  for (const part of parts) owners = owners.flatMap((owner) => objectsIn(owner.properties?.[part] ?? {}));
  if (owners.length === 0) throw new Error(`nothing at ${path} to change`);
  for (const owner of owners) change((owner.properties ??= {}), last, owner);
}

function objectsIn(schema: Schema): Schema[] {
  if (schema.anyOf) return schema.anyOf.flatMap(objectsIn);
  if (schema.type === "array") return objectsIn(schema.items ?? {});
  return schema.type === "object" ? [schema] : [];
}

/** Throws Stripe's 400 for the first thing that is wrong. */
export function readParams(operation: Schema, form: Record<string, FormValue>): Params {
  return readObject(operation, form, "") as Params;
}

function readValue(schema: Schema, value: FormValue, param: string): unknown {
  if (schema.anyOf) return readChoice(schema.anyOf, value, param);
  if (schema.type === undefined) return value;
  if (schema.type === "object") return readObject(schema, value, param);
  if (schema.type === "array") return readArray(schema, value, param);
  if (typeof value !== "string") throw invalidParameter(`Invalid ${schema.type}: ${JSON.stringify(value)}`, param);
  return readScalar(schema, value, param);
}

function readObject(schema: Schema, value: FormValue, param: string): unknown {
  if (typeof value === "string") {
    if (value === "") throw emptyString(param);
    throw invalidParameter("Invalid object", param);
  }
  const out: Params = {};
  for (const [name, inner] of Object.entries(value)) {
    const path = param ? `${param}[${name}]` : name;
    const field = schema.properties?.[name] ?? schema.additionalProperties;
    // An object without described fields is one that is not checked.
    if (!field && schema.properties)
      throw invalidParameter(`Received unknown parameter: ${path}`, path, "parameter_unknown");
    // An empty value in metadata takes its key away.
    const unsets = inner === "" && !schema.properties;
    out[name] = field && !unsets ? readValue(field, inner, path) : inner;
  }
  if (!schema.properties) checkMetadata(out, param);
  for (const name of schema.required ?? []) {
    if (out[name] !== undefined) continue;
    const path = param ? `${param}[${name}]` : name;
    throw invalidParameter(`Missing required param: ${path}.`, path, "parameter_missing");
  }
  return out;
}

/** Stripe's limits of what a shop may note down on an object. */
function checkMetadata(metadata: Params, param: string): void {
  const entries = Object.entries(metadata);
  if (entries.length > 50) throw invalidParameter("Metadata can have up to 50 keys.", param);
  for (const [name, value] of entries) {
    if (name.length > 40)
      throw invalidParameter(`Metadata keys can have up to 40 characters. Invalid key: '${name}'`, `${param}[${name}]`);
    if (typeof value === "string" && value.length > 500)
      throw invalidParameter(
        `Metadata values can have up to 500 characters, but you passed in a value that is ${value.length} characters.`,
        `${param}[${name}]`,
      );
  }
}

function readArray(schema: Schema, value: FormValue, param: string): unknown[] {
  if (typeof value === "string") throw value === "" ? emptyString(param) : invalidParameter("Invalid array", param);
  const entries = Object.entries(value);
  if (entries.some(([name]) => !/^\d+$/.test(name))) throw invalidParameter("Invalid array", param);
  entries.sort(([a], [b]) => Number(a) - Number(b));
  return entries.map(([name, item]) => readValue(schema.items ?? {}, item, `${param}[${name}]`));
}

function readScalar(schema: Schema, value: string, param: string): unknown {
  if (schema.enum) {
    if (schema.enum.includes(value)) return value;
    const choices = schema.enum.filter((choice) => choice !== "");
    throw invalidParameter(`Invalid ${param}: must be one of ${choices.join(", ")}`, param);
  }
  if (value === "") throw emptyString(param);
  if (schema.type === "boolean") {
    if (value !== "true" && value !== "false") throw invalidParameter(`Invalid boolean: ${value}`, param);
    return value === "true";
  }
  if (schema.type === "integer") {
    if (!/^-?\d+$/.test(value)) throw invalidParameter(`Invalid integer: ${value}`, param, "parameter_invalid_integer");
    return Number(value);
  }
  if (schema.type === "number") {
    if (Number.isNaN(Number(value))) throw invalidParameter(`Invalid decimal: ${value}`, param);
    return Number(value);
  }
  if (schema.maxLength !== undefined && value.length > schema.maxLength) {
    const shown = `${value.slice(0, 12)}...${value.slice(-6)}`;
    throw invalidParameter(`Invalid string: ${shown}; must be at most ${schema.maxLength} characters`, param);
  }
  return value;
}

/** The first kind that fits; else the complaint of the kind that was meant. */
function readChoice(choices: Schema[], value: FormValue, param: string): unknown {
  let complaint: unknown;
  for (const choice of choices) {
    try {
      return readValue(choice, value, param);
    } catch (error) {
      const meant = (typeof value === "string") === (choice.type !== "object" && choice.type !== "array");
      if (meant || complaint === undefined) complaint = error;
    }
  }
  throw complaint;
}

function emptyString(param: string) {
  const message = `You passed an empty string for '${param}'. We assume empty values are an attempt to unset a parameter; however '${param}' cannot be unset. You should remove '${param}' from your request or supply a non-empty value.`;
  return invalidParameter(message, param, "parameter_invalid_empty");
}
