import { z } from "zod";
import { ERRORS } from "../lib/errors.ts";
import { errorSchema } from "../protocol/api.ts";
import type { RouteSpec } from "./env.ts";

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
      securitySchemes: { bearer: { type: "http", scheme: "bearer", bearerFormat: "JWT" } },
      schemas: { Error: schemaOf(errorSchema, "output") },
    },
  };
}

function renderOperation(spec: RouteSpec): object {
  const parameters = [...renderParameters("path", spec.params), ...renderParameters("query", spec.query)];
  return {
    summary: spec.summary,
    tags: [spec.tag],
    ...(spec.access === "user" ? { security: [{ bearer: [] }] } : {}),
    ...(parameters.length > 0 ? { parameters } : {}),
    ...(spec.body
      ? { requestBody: { required: true, content: { "application/json": { schema: schemaOf(spec.body, "input") } } } }
      : {}),
    responses: renderResponses(spec),
  };
}

function renderResponses(spec: RouteSpec): Record<string, object> {
  const responses: Record<string, object> = {};
  for (const [status, schema] of Object.entries(spec.responses)) {
    responses[status] = {
      description: status === "204" ? "Done" : "OK",
      ...(schema ? { content: { [spec.produces ?? "application/json"]: { schema: schemaOf(schema, "output") } } } : {}),
    };
  }
  for (const code of errorsOf(spec)) {
    const { status, message } = ERRORS[code];
    const known = responses[status] as { description: string } | undefined;
    const description = `\`${code}\`: ${message}`;
    responses[status] = {
      description: known ? `${known.description}\n\n${description}` : description,
      content: { "application/json": { schema: { $ref: "#/components/schemas/Error" } } },
    };
  }
  return responses;
}

function errorsOf(spec: RouteSpec) {
  return [
    ...spec.errors,
    ...(spec.body ? (["validation_failed", "invalid_json", "body_too_large"] as const) : []),
    ...(spec.access === "operator" ? (["not_found"] as const) : []),
    ...(spec.access === "user" ? (["unauthorized", "token_expired", "session_revoked"] as const) : []),
  ];
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
