import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { createServer } from "../../src/server.ts";
import { ChatHub } from "../../src/services/chatHub.ts";
import { type Answer, call, idle, type Json, makeAssistant, makeUser, type TestUser } from "../factories.ts";
import { createOperator, revokeOperator } from "../../src/services/operators.ts";
import { startTestReef, type TestReef } from "../harness.ts";

/** Every route of the application and who may call it. A new route fails here until it is listed. */
const TABLE: Record<string, "public" | "user" | "operator"> = {
  "GET /health": "public",
  "GET /livez": "public",
  "GET /readyz": "public",
  "POST /api/auth/signup": "public",
  "POST /api/auth/login": "public",
  "POST /api/auth/social": "public",
  "POST /api/auth/refresh": "public",
  "POST /api/auth/logout": "user",
  "POST /api/auth/forgot-password": "public",
  "POST /api/auth/reset-password": "public",
  "POST /api/auth/verify-email": "public",
  "POST /api/auth/verify-email/resend": "user",
  "GET /api/auth/sessions": "user",
  "PUT /api/auth/sessions/:id": "user",
  "DELETE /api/auth/sessions/:id": "user",
  "GET /api/user/profile": "user",
  "PUT /api/user/profile": "user",
  "POST /api/user/password": "user",
  "GET /api/user/usage": "user",
  "GET /api/user/export": "user",
  "GET /api/assistants": "user",
  "POST /api/assistants": "user",
  "GET /api/assistants/:id": "user",
  "PUT /api/assistants/:id": "user",
  "DELETE /api/assistants/:id": "user",
  "POST /api/assistants/:id/pause": "user",
  "POST /api/assistants/:id/resume": "user",
  "GET /api/assistants/:id/messages": "user",
  "POST /api/assistants/:id/messages": "user",
  "POST /api/voice/transcribe": "user",
  "POST /api/voice/speak": "user",
  "DELETE /api/user/account": "user",
  "GET /api/subscription": "user",
  "GET /api/subscription/plans": "public",
  "POST /api/subscription/checkout": "user",
  "POST /api/subscription/portal": "user",
  "POST /api/subscription/cancel": "user",
  "POST /api/subscription/resume": "user",
  "POST /api/webhooks/stripe": "public",
  "GET /metrics": "operator",
  "GET /api/admin/users": "operator",
  "GET /api/admin/users/:id": "operator",
  "POST /api/admin/users/:id/suspend": "operator",
  "POST /api/admin/users/:id/restore": "operator",
  "POST /api/admin/users/:id/end-sessions": "operator",
  "POST /api/admin/users/:id/grant": "operator",
  "DELETE /api/admin/users/:id/grant": "operator",
  "GET /api/admin/audit": "operator",
  "GET /api/admin/costs": "operator",
};
const DOCUMENTS = [
  "GET /openapi.json",
  "GET /docs",
  "GET /docs/start.js",
  "GET /docs/:asset",
  "GET /ws/chat",
  "GET /subscription",
];
const WITH_BODY = new Set([
  "POST /api/auth/signup",
  "POST /api/auth/login",
  "POST /api/auth/social",
  "POST /api/auth/refresh",
  "POST /api/auth/logout",
  "POST /api/auth/forgot-password",
  "POST /api/auth/reset-password",
  "POST /api/auth/verify-email",
  "PUT /api/auth/sessions/:id",
  "PUT /api/user/profile",
  "POST /api/user/password",
  "POST /api/assistants",
  "PUT /api/assistants/:id",
  "POST /api/assistants/:id/messages",
  "POST /api/voice/transcribe",
  "POST /api/voice/speak",
  "DELETE /api/user/account",
  "POST /api/subscription/checkout",
  "POST /api/admin/users/:id/suspend",
  "POST /api/admin/users/:id/grant",
]);
/** Larger bodies than elsewhere are read, and found wrong. */
const TAKES_LARGE = new Set(["POST /api/voice/transcribe", "POST /api/voice/speak"]);
/** A body that fits, where a route needs one. */
const FITTING: Record<string, object> = {
  "PUT /api/auth/sessions/:id": { device_name: "Mine now" },
  "PUT /api/assistants/:id": { display_name: "Mine now" },
  "POST /api/assistants/:id/messages": { content: "hi", client_id: crypto.randomUUID() },
};

const OPERATOR_BODIES: Record<string, object> = {
  "POST /api/admin/users/:id/suspend": { reason: "test" },
  "POST /api/admin/users/:id/grant": { plan: "pro" },
};

let reef: TestReef;
let owner: TestUser;
let stranger: TestUser;
let assistantId: string;
let sessionId: string;
let operatorToken: string;
let description: Json;

beforeAll(async () => {
  reef = await startTestReef();
  owner = await makeUser(reef);
  stranger = await makeUser(reef);
  assistantId = (await makeAssistant(owner)).id;
  sessionId = (await owner.call("GET", "/api/auth/sessions")).body[0].id;
  operatorToken = (await createOperator(reef.deps, { osUser: "tester" }, "every-route"))!;
});
afterAll(() => reef.stop());

/** The path with a thing of the owner's in it, and what somebody else is told who asks for it. */
const isSession = (path: string) => path.startsWith("/api/auth/sessions");
const thingOf = (path: string) => (path.includes("/admin/") ? owner.id : isSession(path) ? sessionId : assistantId);
const pathOf = (path: string) => path.replace(":id", thingOf(path));
const unknownOf = (path: string) => (isSession(path) ? "session_not_found" : "assistant_not_found");
const tokenFor = (route: string) => (TABLE[route] === "operator" ? operatorToken : owner.token);
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
  const { app, specs } = createServer(reef.deps, new ChatHub(reef.deps), idle, () => false);
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
    if (path.includes("/assistants/:id")) {
      test(`${route}: somebody else's is 404`, async () => {
        const body = FITTING[route];
        const answer = await stranger.call(method, pathOf(path), body);
        expect([answer.status, answer.body.code]).toEqual([404, unknownOf(path)]);
        await expectDescribed(route, answer);
        await expectDescribed(route, await owner.call(method, path.replace(":id", "17"), body));
        const still = await owner.call("GET", `/api/assistants/${assistantId}`);
        expect([still.body.status, still.body.display_name, still.body.message_count]).toEqual([
          "active",
          "Assistant",
          0,
        ]);
        expect((await owner.call("GET", "/api/auth/sessions")).body).toMatchObject([
          { id: sessionId, device_name: null },
        ]);
      });
    }
    for (const status of ["suspended", "deleting"]) {
      test(`${route}: an account that is ${status} is 403, its living token too`, async () => {
        const user = await makeUser(reef);
        await reef.sql`update users set status = ${status} where id = ${user.id}`;
        const answer = await user.call(method, pathOf(path), FITTING[route] ?? (WITH_BODY.has(route) ? {} : undefined));
        expect([answer.status, answer.body.code]).toEqual([403, "account_suspended"]);
        await expectDescribed(route, answer);
      });
    }
    test(`${route}: the token of an account that is gone is 401`, async () => {
      const user = await makeUser(reef);
      await reef.sql`delete from users where id = ${user.id}`;
      const answer = await user.call(method, pathOf(path), FITTING[route] ?? (WITH_BODY.has(route) ? {} : undefined));
      expect([answer.status, answer.body.code]).toEqual([401, "unauthorized"]);
    });
  }
});

describe("every user route", () => {
  for (const route of Object.keys(TABLE).filter((name) => TABLE[name] === "user")) {
    const [method, path] = split(route);
    test(`${route}: a suspended user is 403, one that leaves too, an operator's token 401`, async () => {
      const user = await makeUser(reef);
      const body = WITH_BODY.has(route) ? {} : undefined;
      for (const status of ["suspended", "deleting"]) {
        await reef.sql`update users set status = ${status} where id = ${user.id}`;
        const answer = await user.call(method, pathOf(path), body);
        expect([answer.status, answer.body.code]).toEqual([403, "account_suspended"]);
        await expectDescribed(route, answer);
      }
      const answer = await call(reef.url, method, pathOf(path), body, operatorToken);
      expect([answer.status, answer.body.code]).toEqual([401, "unauthorized"]);
    });
  }
});

describe("operator routes", () => {
  for (const route of Object.keys(TABLE).filter((name) => name.includes("/api/admin"))) {
    const [method, path] = split(route);
    const body = OPERATOR_BODIES[route];
    test(`${route}: no token, a user's, a suspended user's, an unknown and a revoked one are the same 401`, async () => {
      const suspended = await makeUser(reef);
      await reef.sql`update users set status = 'suspended' where id = ${suspended.id}`;
      const name = `revoked-${Math.random().toString(36).slice(2)}`;
      const revoked = (await createOperator(reef.deps, { osUser: "tester" }, name))!;
      await revokeOperator(reef.deps, { osUser: "tester" }, name);
      for (const token of [undefined, owner.token, stranger.token, suspended.token, `op_${"x".repeat(43)}`, revoked]) {
        const answer = await call(reef.url, method, pathOf(path), body, token);
        expect([answer.status, answer.body.code]).toEqual([401, "unauthorized"]);
        await expectDescribed(route, answer);
      }
      expect((await owner.call("GET", "/api/assistants")).status).toBe(200);
    });
    test(`${route}: a right token is answered, as described; an id that is nobody's is 404`, async () => {
      const user = await makeUser(reef);
      const ask = (id: string) => call(reef.url, method, path.replace(":id", id), body, operatorToken);
      const answer = await ask(user.id);
      expect(answer.status).toBe(200);
      await expectDescribed(route, answer);
      if (!path.includes(":id")) {
        const bad = await call(reef.url, method, `${path}?limit=x&unknown=1`, undefined, operatorToken);
        expect([bad.status, bad.body.code]).toEqual([400, "validation_failed"]);
        return expectDescribed(route, bad);
      }
      for (const id of [crypto.randomUUID(), "17"]) {
        const missing = await ask(id);
        expect(missing.status).toBe(404);
        await expectDescribed(route, missing);
      }
    });
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
        [
          { email: 1, password: 2, refresh_token: 3, all: "x", display_name: 4, content: 5, device_name: 6 },
          400,
          "validation_failed",
        ],
        TAKES_LARGE.has(route)
          ? [JSON.stringify({ email: "x".repeat(66_000) }), 400, "validation_failed"]
          : [JSON.stringify({ email: "x".repeat(66_000) }), 413, "body_too_large"],
      ];
      for (const [body, status, code] of cases) {
        const answer = await call(reef.url, method, pathOf(path), body, tokenFor(route));
        expect([answer.status, answer.body.code]).toEqual([status, code]);
        await expectDescribed(route, answer);
      }
      for (const type of ["text/plain", "application/json,", "application/jsonp"]) {
        const answer = await call(reef.url, method, pathOf(path), '{"a":1}', tokenFor(route), { "content-type": type });
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

test("what clients of the description need: the three forms of a recording, sound as an answer, no key where none counts", async () => {
  await expectDescribed("GET /livez", await call(reef.url, "GET", "/livez"));
  const { "/api/voice/transcribe": transcribe, "/api/voice/speak": speak } = description.paths;
  const forms = transcribe.post.requestBody.content;
  expect(Object.keys(forms)).toEqual([
    "application/json",
    "multipart/form-data",
    "audio/*",
    "application/octet-stream",
  ]);
  expect(forms["application/json"].schema.required).toEqual(["audio"]);
  expect(forms["multipart/form-data"].schema.properties.file.contentMediaType).toBe("application/octet-stream");
  expect(Object.keys(speak.post.responses[200].content)).toEqual([
    "application/json",
    "audio/mpeg",
    "audio/ogg",
    "audio/aac",
    "audio/flac",
    "audio/wav",
    "audio/pcm",
  ]);
  expect(speak.post.responses[200].headers["X-RateLimit-TTS-Remaining"]).toBeDefined();
  const names = (operation: Json) => (operation.parameters ?? []).map(({ name }: Json) => name);
  expect([names(transcribe.post), names(speak.post)]).toEqual([["Idempotency-Key"], []]);
  expect(speak.post.description).toContain("Idempotency-Key");
  for (const code of [400, 401, 403, 408, 409, 413, 415, 429, 503])
    expect(transcribe.post.responses[code]).toBeDefined();
  expect(speak.post.responses[409]).toBeUndefined();
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
