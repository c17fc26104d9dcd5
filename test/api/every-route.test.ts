import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { createServer } from "../../src/server.ts";
import { createChatHub } from "../../src/services/chatHub.ts";
import { call, makeAssistant, makeUser, type TestUser } from "../factories.ts";
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
const DOCUMENTS = ["GET /openapi.json", "GET /docs", "GET /docs/start.js", "GET /docs/:asset"];
const WITH_BODY = new Set([
  "POST /api/auth/signup",
  "POST /api/auth/login",
  "POST /api/auth/refresh",
  "POST /api/auth/logout",
  "POST /api/assistants",
  "PUT /api/assistants/:id",
  "POST /api/assistants/:id/messages",
]);

let reef: TestReef;
let owner: TestUser;
let stranger: TestUser;
let assistantId: string;

beforeAll(async () => {
  reef = await startTestReef();
  owner = await makeUser(reef);
  stranger = await makeUser(reef);
  assistantId = (await makeAssistant(owner)).id;
});
afterAll(() => reef.stop());

const pathOf = (path: string) => path.replace(":id", assistantId);
const split = (route: string) => route.split(" ") as [string, string];

test("the table names every route, and nothing else is mounted", () => {
  const { app, specs } = createServer(reef.deps, createChatHub(reef.deps), () => false);
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
      }
      expect(
        (await call(reef.url, method, pathOf(path), "a=b", owner.token, { "content-type": "text/plain" })).body.code,
      ).toBe("unsupported_media_type");
    });
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
