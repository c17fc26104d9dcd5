import { afterAll, beforeAll, expect, test } from "bun:test";
import { makeAssistant, makeUser, openChat, type TestUser } from "../factories.ts";
import { startProcess, startTestReef, type TestReef } from "../harness.ts";

const PAGE = "https://app.example.com";
const FOREIGN = "https://evil.example.com";

let reef: TestReef;
let user: TestUser;
let agentId: string;
beforeAll(async () => {
  reef = await startTestReef({ CORS_ORIGINS: `${PAGE},https://example.com:8443`, TRUSTED_PROXIES: "1" });
  user = await makeUser(reef);
  agentId = (await makeAssistant(user)).agent_id;
});
afterAll(() => reef.stop());

const ask = (path: string, headers: Record<string, string> = {}, method = "GET", url = reef.url) =>
  fetch(url + path, { method, headers });
const preflight = (origin: string) =>
  ask(
    "/api/assistants",
    { origin, "access-control-request-method": "POST", "access-control-request-headers": "authorization" },
    "OPTIONS",
  );

test("every answer, errors too, has the headers of an API", async () => {
  for (const path of ["/api/assistants", "/nothing", "/livez", "/openapi.json", "/ws/chat"]) {
    const { headers } = await ask(path);
    expect([path, headers.get("x-content-type-options"), headers.get("x-frame-options")]).toEqual([
      path,
      "nosniff",
      "DENY",
    ]);
    expect(headers.get("content-security-policy")).toBe("default-src 'none'; frame-ancestors 'none'");
    expect(headers.get("referrer-policy")).toBe("no-referrer");
    expect(headers.get("cross-origin-resource-policy")).toBe("same-origin");
    expect(headers.get("strict-transport-security")).toBeNull();
  }
  expect((await ask("/api/assistants")).headers.get("cache-control")).toBe("no-store");
  const page = await ask("/docs");
  expect(page.headers.get("content-security-policy")).toContain("script-src 'self';");
  expect(page.headers.get("content-security-policy")).toContain("frame-ancestors 'none'");
});

test("HSTS: behind a proxy of ours that had TLS, and always in production; never on a client's word", async () => {
  expect((await ask("/livez", { "x-forwarded-proto": "https" })).headers.get("strict-transport-security")).toBe(
    "max-age=31536000",
  );
  const direct = await startProcess({ ...reef.env, TRUSTED_PROXIES: "0" });
  const production = await startProcess({ ...reef.env, TRUSTED_PROXIES: "0", NODE_ENV: "production" });
  try {
    const claimed = await ask("/livez", { "x-forwarded-proto": "https" }, "GET", direct.url);
    expect(claimed.headers.get("strict-transport-security")).toBeNull();
    const always = await ask("/livez", {}, "GET", production.url);
    expect(always.headers.get("strict-transport-security")).toBe("max-age=31536000");
  } finally {
    await Promise.all([direct.stop(), production.stop()]);
  }
});

test("a listed page may call, its errors are readable too, and its preflight is kept for a while", async () => {
  const allowed = await preflight(PAGE);
  expect([allowed.status, allowed.headers.get("access-control-allow-origin")]).toEqual([204, PAGE]);
  expect(allowed.headers.get("access-control-allow-methods")).toBe("GET,POST,PUT,DELETE");
  expect(allowed.headers.get("access-control-allow-headers")).toContain("Authorization");
  expect(allowed.headers.get("access-control-max-age")).toBe("7200");
  expect(allowed.headers.get("access-control-allow-credentials")).toBeNull();
  const refused = await ask("/api/assistants", { origin: PAGE });
  expect([refused.status, refused.headers.get("access-control-allow-origin")]).toEqual([401, PAGE]);
  expect(refused.headers.get("vary")).toContain("Origin");
  expect(refused.headers.get("access-control-expose-headers")).toContain("Retry-After");
});

test("nobody else may: not a neighbour, not another port or scheme, not null, not a longer name", async () => {
  for (const origin of [
    FOREIGN,
    "null",
    "http://app.example.com",
    `${PAGE}:444`,
    `${PAGE}.evil.com`,
    "https://APP.example.com",
    "https://example.com",
  ]) {
    for (const answer of [await preflight(origin), await ask("/api/assistants", { origin })])
      expect([origin, answer.headers.get("access-control-allow-origin")]).toEqual([origin, null]);
  }
  expect((await ask("/metrics", { origin: PAGE })).headers.get("access-control-allow-origin")).toBeNull();
});

test("without a list no page may call, and OPTIONS is no method", async () => {
  const closed = await startProcess({ ...reef.env, CORS_ORIGINS: "" });
  try {
    const answer = await ask(
      "/api/assistants",
      { origin: PAGE, "access-control-request-method": "GET" },
      "OPTIONS",
      closed.url,
    );
    expect([answer.status, answer.headers.get("access-control-allow-origin")]).toEqual([405, null]);
  } finally {
    await closed.stop();
  }
});

test("a chat socket: pages of the list and apps may open one, foreign pages not", async () => {
  const open = (origin?: string) =>
    fetch(`${reef.url}/ws/chat?agent_id=${agentId}&token=${user.token}`, {
      headers: {
        connection: "upgrade",
        upgrade: "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        ...(origin === undefined ? {} : { origin }),
      },
    });
  for (const origin of [FOREIGN, "null", "nonsense", `${PAGE}.evil.com`]) {
    const refused = await open(origin);
    expect([origin, refused.status, ((await refused.json()) as { code: string }).code]).toEqual([
      origin,
      403,
      "forbidden",
    ]);
    expect(refused.headers.get("x-content-type-options")).toBe("nosniff");
  }
  const chat = await openChat(reef, user.token, agentId);
  expect(chat.frames[0].type).toBe("connected");
  chat.close();
  for (const origin of [PAGE, reef.url]) {
    const socket = new WebSocket(`${reef.url.replace("http", "ws")}/ws/chat?agent_id=${agentId}&token=${user.token}`, {
      headers: { origin },
    });
    await new Promise((resolve, reject) => {
      socket.onmessage = resolve;
      socket.onclose = ({ code }) => reject(new Error(`closed: ${code}`));
    });
    socket.close();
  }
});
