import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { createServer } from "../../src/server.ts";
import { createChatHub } from "../../src/services/chatHub.ts";
import { call, makeAssistant, makeUser, type Answer, type Json, type TestUser } from "../factories.ts";
import { startTestReef, type TestReef } from "../harness.ts";

/** Every route of the application and who may call it. A new route fails here until it is listed. */
const TABLE: Record<string, "public" | "user" | "operator"> = {
  "GET /health": "public",
  "GET /livez": "public",
  "GET /readyz": "public",
  "POST /api/auth/signup": "public",
  "POST /api/auth/login": "public",
  "POST /api/auth/refresh": "public",
  "POST /api/auth/logout": "user",
  "GET /api/assistants": "user",
  "POST /api/assistants": "user",
  "GET /api/assistants/:id": "user",
  "PUT /api/assistants/:id": "user",
  "DELETE /api/assistants/:id": "user",
  "POST /api/assistants/:id/pause": "user",
  "POST /api/assistants/:id/resume": "user",
  "GET /api/assistants/:id/messages": "user",
  "POST /api/assistants/:id/messages": "user",
  "GET /metrics": "operator",
};
const DOCUMENTS = ["GET /openapi.json", "GET /docs", "GET /docs/start.js", "GET /docs/:asset", "GET /ws/chat"];
const WITH_BODY = new Set([
  "POST /api/auth/signup",
  "POST /api/auth/login",
  "POST /api/auth/refresh",
  "POST /api/auth/logout",
  "POST /api/assistants",
  "PUT /api/assistants/:id",
  "POST /api/assistants/:id/messages",
]);

/** Nothing is sent here. */
const idle = { claim: async () => [], start: () => undefined };
let reef: TestReef;
let owner: TestUser;
let stranger: TestUser;
let assistantId: string;
let description: Json;

beforeAll(async () => {
  reef = await startTestReef();
  owner = await makeUser(reef);
  stranger = await makeUser(reef);
  assistantId = (await makeAssistant(owner)).id;
});
afterAll(() => reef.stop());

const pathOf = (path: string) => path.replace(":id", assistantId);
const split = (route: string) => route.split(" ") as [string, string];

/** Fails when the description does not have this answer for this route. */
async function expectDescribed(route: string, answer: Answer) {
  description ??= (await call(reef.url, "GET", "/openapi.json")).body;
  const [method, path] = split(route);
  const response = description.paths[path.replace(":id", "{id}")][method.toLowerCase()].responses[answer.status];
  const schema = response?.content?.["application/json"].schema;
  const problem = schema?.anyOf?.[1] ?? schema;
  const codes: string[] = problem?.allOf?.[1].properties.code.enum ?? [];
  expect([route, answer.status, codes]).toEqual([
    route,
    answer.status,
    expect.arrayContaining(answer.body?.code ? [answer.body.code] : []),
  ]);
  expect(response.headers["X-Request-Id"]).toBeDefined();
  expect(answer.headers.get("x-request-id")).toBeTruthy();
  expect(response.headers["Retry-After"] !== undefined || !answer.headers.has("retry-after")).toBe(true);
}

test("the table names every route, and nothing else is mounted", () => {
  const { app, specs } = createServer(reef.deps, createChatHub(reef.deps), idle, () => false);
  expect(new Map(specs.map((spec) => [`${spec.method.toUpperCase()} ${spec.path}`, spec.access]))).toEqual(
    new Map(Object.entries(TABLE)),
  );
  const mounted = new Set(
    app.routes.filter((route) => route.method !== "ALL").map((route) => `${route.method} ${route.path}`),
  );
  expect([...mounted].sort()).toEqual([...Object.keys(TABLE), ...DOCUMENTS].sort());
});

describe("user routes", () => {
  for (const route of Object.keys(TABLE).filter((name) => TABLE[name] === "user")) {
    const [method, path] = split(route);
    test(`${route}: no token is 401, a bad one too`, async () => {
      for (const token of [undefined, "nonsense"]) {
        const answer = await call(reef.url, method, pathOf(path), WITH_BODY.has(route) ? {} : undefined, token);
        expect([answer.status, answer.body.code]).toEqual([401, "unauthorized"]);
        await expectDescribed(route, answer);
        expect(answer.body.request_id).toBe(answer.headers.get("x-request-id"));
      }
    });
    if (path.includes(":id")) {
      test(`${route}: somebody else's is 404`, async () => {
        const body =
          method === "PUT"
            ? { display_name: "Mine now" }
            : route.endsWith("POST /api/assistants/:id/messages")
              ? { content: "hi", client_id: crypto.randomUUID() }
              : undefined;
        const answer = await stranger.call(method, pathOf(path), body);
        expect([answer.status, answer.body.code]).toEqual([404, "assistant_not_found"]);
        await expectDescribed(route, answer);
        await expectDescribed(route, await owner.call(method, path.replace(":id", "17"), body));
        const still = await owner.call("GET", `/api/assistants/${assistantId}`);
        expect([still.body.status, still.body.display_name, still.body.message_count]).toEqual([
          "active",
          "Assistant",
          0,
        ]);
      });
    }
  }
});

describe("bad bodies", () => {
  for (const route of WITH_BODY) {
    const [method, path] = split(route);
    test(`${route}: malformed, unknown field, wrong type, too large`, async () => {
      const cases: [unknown, number, string][] = [
        ["{", 400, "invalid_json"],
        [{ unknown_field: 1 }, 400, "validation_failed"],
        [[], 400, "validation_failed"],
        [{ email: 1, password: 2, refresh_token: 3, all: "x", display_name: 4, content: 5 }, 400, "validation_failed"],
        [JSON.stringify({ email: "x".repeat(66_000) }), 413, "body_too_large"],
      ];
      for (const [body, status, code] of cases) {
        const answer = await call(reef.url, method, pathOf(path), body, owner.token);
        expect([answer.status, answer.body.code]).toEqual([status, code]);
        await expectDescribed(route, answer);
      }
      for (const type of ["text/plain", "application/json,", "application/jsonp"]) {
        const answer = await call(reef.url, method, pathOf(path), '{"a":1}', owner.token, { "content-type": type });
        expect([answer.status, answer.body.code]).toEqual([415, "unsupported_media_type"]);
        await expectDescribed(route, answer);
      }
    });
  }
});

test("further answers are described: suspended, bad query, bad and reused keys, a right one of each kind", async () => {
  const user = await makeUser(reef);
  const list = "/api/assistants";
  const key = (value: string) => ({ "idempotency-key": value });
  await expectDescribed(`POST ${list}`, await user.call("POST", list, {}, key("x".repeat(201))));
  const created = await user.call("POST", list, {}, key("one"));
  await expectDescribed(`POST ${list}`, created);
  await expectDescribed(`POST ${list}`, await user.call("POST", list, { voice: "alloy" }, key("one")));
  await expectDescribed(`POST ${list}`, await user.call("POST", list, {}));
  const messages = `${list}/${created.body.id}/messages`;
  await expectDescribed(`GET ${list}/:id/messages`, await user.call("GET", `${messages}?limit=x`));
  for (const path of ["/health", "/livez", "/readyz"])
    await expectDescribed(`GET ${path}`, await call(reef.url, "GET", path));
  await reef.sql`update users set status = 'suspended' where id = ${user.id}`;
  await expectDescribed(`GET ${list}`, await user.call("GET", list));
  const refresh = await call(reef.url, "POST", "/api/auth/refresh", { refresh_token: user.refreshToken });
  expect([refresh.status, refresh.body.code]).toEqual([403, "account_suspended"]);
  await expectDescribed("POST /api/auth/refresh", refresh);
});

test("what clients of the description need: keys, optional bodies", async () => {
  await expectDescribed("GET /livez", await call(reef.url, "GET", "/livez"));
  const { paths } = description;
  expect(paths["/api/assistants"].post.requestBody.required).toBe(false);
  expect(paths["/api/auth/logout"].post.requestBody.required).toBe(false);
  expect(paths["/api/auth/login"].post.requestBody.required).toBe(true);
  const names = (operation: Json) => (operation.parameters ?? []).map(({ name }: Json) => name);
  expect(names(paths["/api/assistants/{id}"].put)).toEqual(["id", "Idempotency-Key"]);
  expect(names(paths["/api/assistants/{id}"].get)).toEqual(["id"]);
  expect(names(paths["/api/auth/login"].post)).toEqual([]);
});

test("a wrong method is 405 and says which are right", async () => {
  for (const [method, path, allow] of [
    ["PATCH", "/api/assistants", "GET, HEAD, POST"],
    ["POST", `/api/assistants/${assistantId}`, "DELETE, GET, HEAD, PUT"],
    ["GET", "/api/auth/login", "POST"],
    ["POST", "/openapi.json", "GET, HEAD"],
  ] as const) {
    const answer = await call(reef.url, method, path);
    expect([answer.status, answer.body.code, answer.headers.get("allow")]).toEqual([405, "method_not_allowed", allow]);
  }
});

test("an unknown address and an id that is none are 404 with the usual body", async () => {
  expect((await call(reef.url, "GET", "/nothing")).body.code).toBe("not_found");
  expect((await owner.call("GET", "/api/assistants/17")).body.code).toBe("not_found");
});

test("the description has every route, and the page's files come from here", async () => {
  const description = (await call(reef.url, "GET", "/openapi.json")).body;
  const described = Object.entries(description.paths).flatMap(([path, methods]) =>
    Object.keys(methods as object).map((method) => `${method.toUpperCase()} ${path.replace("{id}", ":id")}`),
  );
  expect(described.sort()).toEqual(Object.keys(TABLE).sort());
  const page = await (await fetch(`${reef.url}/docs`)).text();
  const files = [...page.matchAll(/(?:src|href)="([^"]+)"/g)].map((match) => match[1]!);
  expect(files.length).toBe(3);
  for (const file of files) expect((await fetch(reef.url + file)).status).toBe(200);
});
