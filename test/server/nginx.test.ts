import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { createHmac } from "node:crypto";
import { rmSync, writeFileSync } from "node:fs";
import { connect as connectHttp2 } from "node:http2";
import { join } from "node:path";
import { connect as connectTls } from "node:tls";
import { newId } from "../../src/lib/ids.ts";
import { VOICE_BODY_BYTES } from "../../src/protocol/voice.ts";
import { makeAssistant, makeUser, type Json, type TestUser } from "../factories.ts";
import { GoodClient } from "../faults/goodClient.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";
import { tool } from "../tools.ts";
import { startNginx, type Edge } from "./nginxProcess.ts";

const SECRET = "whsec_reef";
const portOf = (url: string) => Number(new URL(url).port);

let reef: TestReef;
let other: Awaited<ReturnType<typeof startProcess>>;
let edge: Edge;
let user: TestUser;
let assistant: Json;
const closers: (() => unknown)[] = [];

beforeAll(async () => {
  reef = await startTestReef({
    TRUSTED_PROXIES: "1",
    STRIPE_SECRET_KEY: "sk_test_none",
    STRIPE_API_BASE: "http://127.0.0.1:1",
    STRIPE_WEBHOOK_SECRETS: SECRET,
  });
  other = await startProcess(reef.env);
  edge = await startEdge();
  user = await makeUser(reef);
  assistant = await makeAssistant(user);
  // nginx may have to be fetched first.
}, 120_000);
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});
afterAll(async () => {
  await edge.stop();
  await other.stop().catch(() => undefined);
  await reef.stop();
});

/** An nginx of its own where a test uses limits up. */
const startEdge = (replace: [string, string][] = []) =>
  startNginx({ processes: [portOf(reef.url), portOf(other.url)], replace });
async function ownEdge(replace: [string, string][] = []): Promise<Edge> {
  const own = await startEdge(replace);
  closers.push(() => own.stop());
  return own;
}

const ask = (path: string, init: RequestInit & { at?: Edge } = {}) => {
  const { at = edge, ...rest } = init;
  return fetch(at.url + path, { ...rest, tls: { ca: at.ca } });
};
const post = (path: string, body: unknown, init: { at?: Edge; headers?: Record<string, string> } = {}) =>
  ask(path, {
    ...init,
    method: "POST",
    body: typeof body === "string" ? body : JSON.stringify(body),
    headers: { "content-type": "application/json", ...init.headers },
  });
const bearer = () => ({ authorization: `Bearer ${user.token}` });
const times = <T>(n: number, make: (i: number) => Promise<T>) =>
  Promise.all(Array.from({ length: n }, (_, i) => make(i)));

/** Answered in the API's form, as whoever wrote docs/chat-protocol.md expects. */
async function expectRefusal(answer: Response, status: number, code: string, retryAfter: number | null): Promise<void> {
  const body = (await answer.json()) as Json;
  expect([answer.status, body.code, body.retry_after ?? null]).toEqual([status, code, retryAfter]);
  expect(body.error).toMatch(/^[A-Z].*\.$/);
  expect(body.request_id).toBe(answer.headers.get("x-request-id"));
  expect(answer.headers.get("retry-after")).toBe(retryAfter === null ? null : String(retryAfter));
  expect(answer.headers.get("content-type")).toBe("application/json");
  expect(answer.headers.get("access-control-allow-origin")).toBe("*");
  expect(answer.headers.get("x-content-type-options")).toBe("nosniff");
}

/** What the server says to a client that offers just this version of TLS, ciphers of old times included. */
async function shakeHands(...options: string[]): Promise<string> {
  const openssl = await tool("openssl");
  const args = ["s_client", "-connect", `127.0.0.1:${edge.port}`, "-cipher", "DEFAULT:@SECLEVEL=0", ...options];
  const { stdout, stderr } = spawnSync(openssl.path, args, { env: openssl.env, input: "", encoding: "utf8" });
  return stdout + stderr;
}

/** Sends bytes over TLS as they are, and reads until the other side ends. */
function sendRaw(text: string): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  let answer = "";
  const socket = connectTls({ host: "127.0.0.1", port: edge.port, ca: edge.ca }, () => void socket.write(text));
  socket.on("data", (bytes) => void (answer += bytes.toString()));
  socket.on("close", () => resolve(answer));
  socket.on("error", reject);
  return promise;
}

test("TLS 1.2 and 1.3 with forward secrecy, nothing older; HTTP/2; port 80 leads to https", async () => {
  expect(await shakeHands("-tls1_1")).toContain("alert protocol version");
  expect(await shakeHands("-tls1_2", "-alpn", "h2")).toMatch(/ALPN protocol: h2[^]*Protocol *: TLSv1.2/);
  expect(await shakeHands("-tls1_3")).toContain("New, TLSv1.3");
  const weak = ["-tls1_2", "-cipher", "AES128-SHA:ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"];
  expect(await shakeHands(...weak)).toContain("handshake failure");

  const session = connectHttp2(edge.url, { ca: edge.ca });
  closers.push(() => session.close());
  const { promise, resolve, reject } = Promise.withResolvers<unknown>();
  session.on("error", reject);
  const stream = session.request({ ":path": "/livez" });
  stream.on("response", (headers) => resolve(headers[":status"]));
  stream.end();
  expect(await promise).toBe(200);
  expect(session.alpnProtocol).toBe("h2");

  const plain = await fetch(`${edge.httpUrl}/api/auth/login?next=1`, { method: "POST", redirect: "manual" });
  expect([plain.status, plain.headers.get("location")]).toEqual([308, "https://127.0.0.1/api/auth/login?next=1"]);
  writeFileSync(join(edge.folder, "letsencrypt/.well-known/acme-challenge/token"), "proof");
  const challenge = await fetch(`${edge.httpUrl}/.well-known/acme-challenge/token`);
  expect(await challenge.text()).toBe("proof");
});

test("answers of the application come through as they are, with each header once", async () => {
  const direct = await fetch(`${reef.url}/api/user/profile`, {
    headers: { ...bearer(), "x-forwarded-proto": "https" },
  });
  const through = await ask("/api/user/profile", { headers: { ...bearer(), "x-request-id": "an-id-of-the-app" } });
  expect(await through.json()).toEqual(await direct.json());
  const own = ["date", "server", "connection", "x-request-id", "content-length", "transfer-encoding"];
  const rest = (answer: Response) => Object.fromEntries([...answer.headers].filter(([name]) => !own.includes(name)));
  expect(rest(through)).toEqual(rest(direct));
  expect(through.headers.get("strict-transport-security")).toBe("max-age=31536000");
  expect(through.headers.get("x-request-id")).toBe("an-id-of-the-app");
  expect(through.headers.get("server")).toBe("nginx");
  const page = await ask("/docs");
  expect([page.status, page.headers.get("content-security-policy")]).toEqual([
    200,
    (await fetch(`${reef.url}/docs`)).headers.get("content-security-policy"),
  ]);
  for (const path of ["/health", "/livez", "/readyz"]) expect([path, (await ask(path)).status]).toEqual([path, 200]);
});

test("a chat over wss: sent once, answered once; a silent one is left open", async () => {
  reef.gateway.setAnswer(async function* (turn) {
    for (const text of ["You said: ", turn.text]) yield { text };
  });
  const servers = [`${edge.url.replace("https", "wss")}/ws/chat`];
  const device = new GoodClient({ servers, token: user.token, agentId: assistant.agent_id, ca: edge.ca });
  closers.push(() => device.close());
  await until("it is connected", () => device.connected);
  device.send("hello");
  await until("it is answered", () => device.messages.length === 2);
  expect(device.messages.map(({ content }) => content)).toEqual(["hello", "You said: hello"]);
  expect([device.faults, device.refused]).toEqual([[], []]);
  const plain = await ask("/ws/chat");
  expect([plain.status, ((await plain.json()) as Json).code]).toEqual([426, "upgrade_required"]);
});

test("200 events of Stripe in a burst all arrive", async () => {
  const own = await ownEdge();
  const answers = await times(200, () => {
    const body = JSON.stringify({
      id: `evt_${newId()}`,
      object: "event",
      type: "charge.captured",
      created: Math.floor(Date.now() / 1000),
      livemode: false,
      data: { object: { id: "ch_1", object: "charge" } },
    });
    const seconds = Math.floor(Date.now() / 1000);
    const signature = createHmac("sha256", SECRET).update(`${seconds}.${body}`).digest("hex");
    return post("/api/webhooks/stripe", body, {
      at: own,
      headers: { "stripe-signature": `t=${seconds},v1=${signature}` },
    });
  });
  expect(answers.filter(({ status }) => status !== 200).length).toBe(0);
});

test("limits: requests, sign-ins, sockets", async () => {
  const own = await ownEdge([["reef_sockets 100", "reef_sockets 2"]]);
  const preflights = await times(10, () => ask("/api/auth/login", { at: own, method: "OPTIONS" }));
  expect(preflights.map(({ status }) => status)).not.toContain(429);
  const paths = ["/api/auth/login", "/api/auth/signup", "/api/auth/social"];
  const tries = await times(6, (i) => post(paths[i % 3]!, {}, { at: own }));
  const refused = tries.filter(({ status }) => status === 429);
  // One, and a burst of three; one more is let in every twelve seconds.
  expect(refused.length).toBe(2);
  for (const answer of refused) await expectRefusal(answer, 429, "too_many_attempts", 12);
  expect((await post("/api/auth/refresh", {}, { at: own })).status).toBe(400);

  const sockets = Array.from({ length: 3 }, () => {
    const address = `${own.url.replace("https", "wss")}/ws/chat?agent_id=${assistant.agent_id}`;
    return new WebSocket(address, { protocols: ["reef.v1", `bearer.${user.token}`], tls: { ca: own.ca } });
  });
  closers.push(() => sockets.forEach((socket) => socket.close()));
  await until("two are open", () => sockets.filter(({ readyState }) => readyState === WebSocket.OPEN).length === 2);
  await until("one is refused", () => sockets.some(({ readyState }) => readyState === WebSocket.CLOSED));
  const upgrade = {
    connection: "upgrade",
    upgrade: "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "x",
  };
  await expectRefusal(await ask("/ws/chat", { at: own, headers: upgrade }), 429, "too_many_attempts", 1);

  const slow = await ownEdge([["rate=30r/s", "rate=1r/m"]]);
  const burst = await times(55, () => ask("/livez", { at: slow }));
  expect(burst.filter(({ status }) => status === 200).length).toBe(51);
  await expectRefusal(
    burst.find(({ status }) => status === 429)!,
    429,
    "too_many_attempts",
    1,
  );
});

test("bodies: 25 x 2^20 bytes reach the API, one more is refused in its words; 64 KB elsewhere", async () => {
  const sound = { ...bearer(), "content-type": "audio/mpeg" };
  const largest = new Uint8Array(VOICE_BODY_BYTES);
  const heard = await ask("/api/voice/transcribe", { method: "POST", body: largest, headers: sound });
  expect([heard.status, ((await heard.json()) as Json).code]).toEqual([400, "unsupported_audio"]);
  const more = new Uint8Array(VOICE_BODY_BYTES + 1);
  const larger = await ask("/api/voice/transcribe", { method: "POST", body: more, headers: sound });
  await expectRefusal(larger, 413, "body_too_large", null);
  const name = "x".repeat(64 * 1024);
  await expectRefusal(await post("/api/auth/refresh", { refresh_token: name }), 413, "body_too_large", null);
});

test("numbers and operators' addresses are nobody's from outside, however they are spelled", async () => {
  for (const path of [
    "/metrics",
    "/metrics/",
    "//metrics",
    "/%6detrics",
    "/livez/../metrics",
    "/livez/%2e%2e/metrics",
    "/\\metrics",
    "/api/admin",
    "/api/admin/plans",
    "/api//admin/plans",
    "/api/%61dmin/plans",
    "/api%2fadmin/plans",
    "/api\\admin/plans",
    "/api/webhooks/../admin/plans",
    "/api/webhooks/..\\admin/plans",
    "/.\\metrics",
    "/api/voice/%2e%2e/admin/plans",
    "/api/./admin/plans#x",
  ]) {
    const head = "Host: 127.0.0.1\r\nX-Forwarded-For: 127.0.0.1\r\nConnection: close";
    const answer = await sendRaw(`GET ${path} HTTP/1.1\r\n${head}\r\n\r\n`);
    expect([path, answer.split("\r\n")[0]]).toEqual([path, "HTTP/1.1 404 Not Found"]);
    expect(answer).toContain('"code":"not_found"');
  }
  await expectRefusal(await ask("/api/admin/plans"), 404, "not_found", null);
  // No process was asked: it answers 404, too, but not to who has an operator token.
  expect(edge.logs().access).not.toMatch(/"path":"[^"]*(metrics|dmin)[^"]*".*"process":"[^"]/);
  // With such a Host Bun would know no origin, and the application no path.
  const head = "Host: a\\b?\r\nConnection: close";
  const answer = await sendRaw(`GET /ab/livez HTTP/1.1\r\n${head}\r\n\r\n`);
  expect(answer.split("\r\n")[0]).toBe("HTTP/1.1 404 Not Found");
});

test("what a client says of its address does not count", async () => {
  const own = await ownEdge();
  const login = await post(
    "/api/auth/login",
    { email: user.email, password: user.password },
    {
      at: own,
      headers: { "x-forwarded-for": "203.0.113.9", "x-real-ip": "203.0.113.9", forwarded: "for=203.0.113.9" },
    },
  );
  expect(login.status).toBe(200);
  const rows = await reef.sql`select distinct ip from refresh_tokens where user_id = ${user.id}`;
  expect(rows.map((row) => row["ip"])).toEqual(["127.0.0.1"]);
});

test("no query, token or Referer gets into a log", async () => {
  const device = { token: "query-token-secret", agent_id: "x" };
  const headers = { referer: "https://app.example/?token=referer-secret", "x-request-id": 'bad id"secret' };
  const socket = new WebSocket(
    `${edge.url.replace("https", "wss")}/ws/chat?${new URLSearchParams(device).toString()}`,
    {
      tls: { ca: edge.ca },
    },
  );
  const { promise, resolve } = Promise.withResolvers<number>();
  socket.onclose = (event) => resolve(event.code);
  expect(await promise).toBe(1008);
  await ask("/verify-email?token=link-secret", { headers });
  await ask("/metrics?token=link-secret", { headers });
  await ask("/api/user/profile?token=link-secret", { headers: { ...headers, authorization: "Bearer header-secret" } });
  await ask(`/api/voice/speak?token=link-secret`, {
    method: "POST",
    body: new Uint8Array(VOICE_BODY_BYTES + 1),
    headers,
  });
  await fetch(`${edge.httpUrl}/?token=link-secret`, { redirect: "manual" });
  writeFileSync(edge.maintenanceFile, "");
  await ask("/subscription?token=link-secret", { headers: { ...headers, accept: "text/html" } });
  rmSync(edge.maintenanceFile);
  // No process answers here: that, too, nginx would write down with the whole request.
  const alone = await startNginx({ processes: [1, 2] });
  closers.push(() => alone.stop());
  await ask("/ws/chat?token=link-secret", { at: alone, headers });
  await until("it is written", () => edge.logs().access.includes("/subscription"));
  await until("it is written", () => alone.logs().access.includes("/ws/chat"));
  for (const nginx of [edge, alone]) {
    const { access, errors } = nginx.logs();
    expect(access + errors).not.toMatch(/secret|Bearer|\?|referer/i);
    for (const line of access.trimEnd().split("\n")) expect(() => JSON.parse(line) as unknown).not.toThrow();
    // The lines of start and end are all there is.
    expect(errors).not.toContain("request:");
  }
  const line = JSON.parse(
    edge
      .logs()
      .access.split("\n")
      .find((text) => text.includes("/verify-email"))!,
  ) as Json;
  expect(line).toMatchObject({ client: "127.0.0.1", method: "GET", path: "/verify-email", status: 404 });
});

test("the maintenance page: words for people, an error for programs, as long as the file is there", async () => {
  writeFileSync(edge.maintenanceFile, "");
  closers.push(() => rmSync(edge.maintenanceFile, { force: true }));
  await expectRefusal(await ask("/api/user/profile", { headers: bearer() }), 503, "service_unavailable", 10);
  await expectRefusal(await post("/api/webhooks/stripe", {}), 503, "service_unavailable", 10);
  await expectRefusal(await ask("/health"), 503, "service_unavailable", 10);
  const page = await ask("/subscription?checkout=done", { headers: { accept: "text/html,*/*" } });
  expect([page.status, page.headers.get("content-type"), page.headers.get("retry-after")]).toEqual([
    503,
    "text/html",
    "10",
  ]);
  expect(await page.text()).toContain("Back in a moment");
  rmSync(edge.maintenanceFile);
  expect((await ask("/health")).status).toBe(200);
});

test("a process that is announced gets nothing; one that is down costs nothing; both down is said, and over at once", async () => {
  const own = await ownEdge([["rate=30r/s", "rate=10000r/s"]]);
  const processesIn = () => new Set([...own.logs().access.matchAll(/"process":"([^"]*)"/g)].map((match) => match[1]));
  const [first, second] = [reef, other].map(({ url }) => `127.0.0.1:${portOf(url)}`) as [string, string];
  const talk = async (n: number) => {
    const answers: Response[] = [];
    for (let i = 0; i < n; i++)
      answers.push(
        await ask("/livez", { at: own }),
        await post("/api/auth/refresh", { refresh_token: "none" }, { at: own }),
        await ask("/api/user/profile", {
          at: own,
          method: "PUT",
          body: '{"name":"A"}',
          headers: { ...bearer(), "content-type": "application/json" },
        }),
      );
    return new Set(answers.map(({ status }) => status));
  };
  const usual = new Set([200, 401]);
  const written = (n: number) => until("all is written", () => own.logs().access.split("\n").length === n + 1);
  expect(await talk(10)).toEqual(usual);
  await written(30);
  expect(processesIn()).toEqual(new Set([first, second]));

  writeFileSync(join(own.goingDir, "going-2"), "");
  const before = own.logs().access.length;
  expect(await talk(10)).toEqual(usual);
  await written(60);
  expect(own.logs().access.slice(before)).not.toContain(second);

  await other.stop();
  rmSync(join(own.goingDir, "going-2"));
  expect(await talk(10)).toEqual(usual);
  await until("it was tried", () => own.logs().access.includes(`${second}, ${first}`));
  // A forgotten file about the only one that is up.
  writeFileSync(join(own.goingDir, "going-1"), "");
  expect(await talk(5)).toEqual(usual);
  rmSync(join(own.goingDir, "going-1"));

  await reef.stopProcess();
  await expectRefusal(await ask("/api/user/profile", { at: own }), 503, "service_unavailable", 10);
  await expectRefusal(await post("/api/auth/refresh", {}, { at: own }), 503, "service_unavailable", 10);
  other = await startProcess({ ...reef.env, PORT: String(portOf(other.url)) });
  expect(await talk(5)).toEqual(usual);
});
