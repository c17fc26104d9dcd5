import { z } from "zod";
import { ERRORS, type ErrorCode } from "../lib/errors.ts";
import { errorSchema } from "../protocol/api.ts";
import { isBodyOptional, keepsAnswer, type RouteSpec, type UploadSpec } from "./env.ts";
import { RATE_LIMIT_HEADERS } from "./metered.ts";

const REQUEST_ID = { "X-Request-Id": { $ref: "#/components/headers/RequestId" } };
const RETRY_AFTER = { "Retry-After": { $ref: "#/components/headers/RetryAfter" } };
const RATE_LIMITS = Object.fromEntries(
  Object.keys(RATE_LIMIT_HEADERS).map((name) => [name, { $ref: `#/components/headers/${name}` }]),
);
/** Codes whose answer says when to try again. */
const SAYS_WHEN: ErrorCode[] = [
  "too_many_attempts",
  "timezone_changed",
  "export_running",
  "RATE_LIMITED",
  "voice_limit_reached",
  "voice_unavailable",
  "idempotency_in_progress",
  "provider_unavailable",
  "billing_unavailable",
  "service_unavailable",
];
/** What a file looks like in a form; a bare one needs no schema. */
const FILE = { type: "string", contentMediaType: "application/octet-stream" };
const IDEMPOTENCY_KEY = {
  name: "Idempotency-Key",
  in: "header",
  required: false,
  description: "The same key and request: the first answer again, for 24 hours. Another request under it is refused.",
  schema: { type: "string", minLength: 1, maxLength: 200 },
};

/** Describes the routes in OpenAPI 3.1, from the very schemas that validate them. */
export function renderOpenApi(specs: RouteSpec[]): object {
  const paths: Record<string, Record<string, object>> = {};
  for (const spec of specs) {
    const path = spec.path.replace(/:(\w+)/g, "{$1}");
    (paths[path] ??= {})[spec.method] = renderOperation(spec);
  }
  return {
    openapi: "3.1.0",
    info: {
      title: "Reef",
      version: "0.1.0",
      description:
        "Backend for personal AI assistants. Chat runs over the WebSocket `GET /ws/chat?agent_id=…` (sub-protocol `reef.v1`); see the README. " +
        "A signed-in write accepts `Idempotency-Key`. Every answer carries `X-Request-Id`.",
    },
    paths,
    components: {
      securitySchemes: {
        bearer: { type: "http", scheme: "bearer", bearerFormat: "JWT" },
        operator: { type: "http", scheme: "bearer", description: "An operator token, `op_…`; never a user's" },
      },
      schemas: { Error: schemaOf(errorSchema, "output") },
      headers: {
        RequestId: {
          description: "Names this request in the log; the client's own, when it sent a fitting one",
          schema: { type: "string" },
        },
        RetryAfter: { description: "Seconds until another try makes sense", schema: { type: "integer" } },
      },
    },
  };
}

function renderOperation(spec: RouteSpec): object {
  const parameters = [
    ...renderParameters("path", spec.params),
    ...renderParameters("query", spec.query),
    ...(keepsAnswer(spec) ? [IDEMPOTENCY_KEY] : []),
  ];
  return {
    summary: spec.summary,
    ...(spec.keeps === false
      ? { description: "`Idempotency-Key` changes nothing here: each call does its work." }
      : {}),
    tags: [spec.tag],
    ...(spec.access === "user" ? { security: [{ bearer: [] }] } : {}),
    ...(spec.access === "operator" ? { security: [{ operator: [] }, ...(spec.local ? [{}] : [])] } : {}),
    ...(parameters.length > 0 ? { parameters } : {}),
    ...(spec.body
      ? { requestBody: { required: !isBodyOptional(spec.body), content: renderContent(schemaOf(spec.body, "input")) } }
      : {}),
    ...(spec.upload ? { requestBody: { required: true, content: renderForms(spec.upload) } } : {}),
    responses: renderResponses(spec),
  };
}

/** A file's three forms. */
function renderForms({ json, formField, types }: UploadSpec): object {
  const form = {
    type: "object",
    properties: { [formField]: FILE },
    required: [formField],
    additionalProperties: false,
  };
  return {
    ...renderContent(schemaOf(json, "input")),
    ...renderContent(form, "multipart/form-data"),
    ...Object.fromEntries(types.map((type) => [type, {}])),
  };
}

function renderResponses(spec: RouteSpec): Record<string, object> {
  const responses: Record<string, object> = {};
  for (const [status, schema] of Object.entries(spec.responses)) {
    responses[status] = {
      description: status === "204" ? "Done" : "OK",
      headers: { ...REQUEST_ID, ...(spec.metered ? RATE_LIMITS : {}) },
      ...(schema ? { content: renderAnswer(spec, schema) } : {}),
    };
  }
  for (const [status, codes] of Map.groupBy(errorsOf(spec), (code) => ERRORS[code].status)) {
    const problem = {
      allOf: [{ $ref: "#/components/schemas/Error" }, { type: "object", properties: { code: { enum: codes } } }],
    };
    // A probe that says no answers in its own form.
    const own = spec.responses[status];
    responses[status] = {
      description: codes.map((code) => `\`${code}\`: ${ERRORS[code].message}`).join("\n\n"),
      headers: {
        ...REQUEST_ID,
        ...(codes.some((code) => SAYS_WHEN.includes(code)) ? RETRY_AFTER : {}),
        ...(spec.metered ? RATE_LIMITS : {}),
      },
      content: renderContent(own ? { anyOf: [schemaOf(own, "output"), problem] } : problem),
    };
  }
  return responses;
}

function renderAnswer(spec: RouteSpec, schema: z.ZodType): object {
  const streams = Object.fromEntries((spec.streams ?? []).map((type) => [type, {}]));
  return { ...renderContent(schemaOf(schema, "output"), spec.produces), ...streams };
}

function renderContent(schema: object, type = "application/json"): object {
  return { [type]: { schema } };
}

/** What a route itself may answer, and what everything in front of it may: the guards, the checks, the limits. */
function errorsOf(spec: RouteSpec): ErrorCode[] {
  const codes: ErrorCode[] = [...spec.errors, "service_unavailable", "internal_error"];
  if (spec.access === "user") codes.push("unauthorized", "token_expired", "session_revoked", "account_suspended");
  if (spec.body || spec.upload) codes.push("validation_failed", "invalid_json", "unsupported_media_type");
  if (spec.query) codes.push("validation_failed");
  if (spec.params || spec.local) codes.push("not_found");
  if (spec.access === "operator") codes.push("too_many_attempts", ...(spec.local ? [] : (["unauthorized"] as const)));
  if (spec.method !== "get") codes.push("body_too_large");
  if (spec.bodyBytes !== undefined) codes.push("body_too_slow");
  if (keepsAnswer(spec)) codes.push("validation_failed", "idempotency_conflict", "idempotency_in_progress");
  return [...new Set(codes)];
}

function renderParameters(where: "path" | "query", schema: z.ZodType | undefined): object[] {
  if (!schema) return [];
  const object = schemaOf(schema, "input") as {
    properties?: Record<string, { description?: string }>;
    required?: string[];
  };
  return Object.entries(object.properties ?? {}).map(([name, property]) => ({
    name,
    in: where,
    required: where === "path" || (object.required ?? []).includes(name),
    ...(property.description ? { description: property.description } : {}),
    schema: property,
  }));
}

function schemaOf(schema: z.ZodType, io: "input" | "output"): object {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io, unrepresentable: "any" });
  return rest;
}
