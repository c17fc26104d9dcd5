import { afterAll, beforeAll, expect, spyOn, test } from "bun:test";
import { connect } from "node:net";
import { call, makeAssistant, makeUser, type Json } from "../factories.ts";
import { startProcess, startTestReef, until, type TestReef } from "../harness.ts";

let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef()));
afterAll(() => reef.stop());

/** Sends bytes as they are and reads the first answer. */
async function raw(bytes: string): Promise<{ status: number; headers: string; body: Json }> {
  const { port, hostname } = new URL(reef.url);
  const text = await new Promise<string>((done) => {
    let received = "";
    const socket = connect(Number(port), hostname, () => socket.write(bytes));
    const end = () => {
      socket.destroy();
      done(received);
    };
    socket.on("data", (data) => {
      received += data.toString();
      if (received.includes("}")) end();
    });
    socket.on("close", end);
    socket.on("error", end);
  });
  const [headers = "", body = "null"] = text.split("\r\n\r\n");
  return { status: Number(headers.split(" ")[1]), headers: headers.toLowerCase(), body: JSON.parse(body) };
}

test("a Host that is none, or none at all: JSON, and nothing of the address in the log", async () => {
  for (const head of ["HTTP/1.1\r\nHost: a b", "HTTP/1.1\r\nHost: x:99999", "HTTP/1.0"]) {
    for (const upgrade of ["", "\r\nUpgrade: websocket\r\nConnection: Upgrade"]) {
      const answer = await raw(`GET /ws/chat?token=never-logged ${head}${upgrade}\r\n\r\n`);
      expect([answer.status, answer.body.code]).toEqual([400, "validation_failed"]);
      expect(answer.headers).toContain(`x-request-id: ${answer.body.request_id}`);
    }
  }
  expect(reef.logs.join("")).not.toContain("never-logged");
});

test("what fails in front of the application is internal_error and one line, without the address", async () => {
  const broken = spyOn(URL, "parse").mockImplementation(() => {
    throw new Error("broken on purpose");
  });
  const answer = await raw("GET /livez?token=never-logged HTTP/1.1\r\nHost: x\r\n\r\n");
  broken.mockRestore();
  expect([answer.status, answer.body.code]).toEqual([500, "internal_error"]);
  const lines = reef.logs.filter((line) => line.includes(answer.body.request_id));
  expect([lines.length, lines.join("").includes("livez")]).toEqual([1, false]);
});

test("an upgrade that is none is refused like a plain request", async () => {
  const answer = await raw("GET /ws/chat?token=x HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n");
  expect([answer.status, answer.body.code]).toEqual([426, "upgrade_required"]);
});

test("the chat's address tells a plain request that it speaks WebSocket", async () => {
  const answer = await call(reef.url, "GET", "/ws/chat");
  expect([answer.status, answer.body.code, answer.headers.get("upgrade")]).toEqual([
    426,
    "upgrade_required",
    "websocket",
  ]);
});

test("a body over the limit is refused before it is read, and while it comes", async () => {
  const head = "POST /api/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
  for (const bytes of [
    `${head}Content-Length: 5000000000\r\n\r\n`,
    `${head}Transfer-Encoding: chunked\r\n\r\n11000\r\n${"x".repeat(0x11000)}\r\n`,
  ]) {
    const answer = await raw(bytes);
    expect([answer.status, answer.body.code]).toEqual([413, "body_too_large"]);
    expect(answer.headers).toContain("x-request-id: ");
  }
});

test("names that every object has are no assets", async () => {
  for (const name of ["constructor", "__proto__", "toString"])
    expect((await call(reef.url, "GET", `/docs/${name}`)).body.code).toBe("not_found");
});

test("X-Request-Id is on files, errors and repeated answers, and is the client's own where it gave one", async () => {
  expect((await fetch(`${reef.url}/docs/swagger-ui.css`)).headers.get("x-request-id")).toBeTruthy();
  const user = await makeUser(reef);
  for (const id of ["first-request", "second-request"]) {
    const headers = { "idempotency-key": "k", "x-request-id": id };
    expect((await user.call("POST", "/api/assistants", {}, headers)).headers.get("x-request-id")).toBe(id);
  }
});

test("no body is `{}` where `{}` will do, whatever its type", async () => {
  for (const headers of [{}, { "content-type": "text/plain" }, { "content-type": "application/json" }]) {
    const user = await makeUser(reef);
    expect((await user.call("POST", "/api/assistants", undefined, headers)).status).toBe(201);
    expect((await user.call("POST", "/api/auth/logout", undefined, headers)).status).toBe(204);
  }
  const user = await makeUser(reef);
  expect((await user.call("POST", "/api/assistants", "{}", { "content-type": "text/plain" })).status).toBe(415);
  expect((await call(reef.url, "POST", "/api/auth/login")).status).toBe(415);
});

test("a NUL is refused with the field's name", async () => {
  const user = await makeUser(reef);
  const nul = "a\u0000b";
  const email = `${crypto.randomUUID()}@example.org`;
  const { id } = (await user.call("POST", "/api/assistants", {})).body;
  for (const [path, body, field] of [
    ["/api/auth/signup", { email, password: "long enough", name: nul }, "name"],
    ["/api/auth/signup", { email, password: "long enough", timezone: nul }, "timezone"],
    ["/api/auth/login", { email, password: "long enough", device_name: nul }, "device_name"],
    ["/api/assistants", { display_name: nul }, "display_name"],
    [`/api/assistants/${id}/messages`, { content: nul, client_id: crypto.randomUUID() }, "content"],
  ] as const) {
    const answer = await user.call("POST", path, body);
    expect([answer.status, answer.body.code]).toEqual([400, "validation_failed"]);
    expect(answer.body.details).toEqual([{ path: field, message: "must not contain NUL" }]);
  }
});

test("Idempotency-Key a day later is another request, also when the first assistant is gone", async () => {
  const user = await makeUser(reef);
  const create = (body: object) => user.call("POST", "/api/assistants", body, { "idempotency-key": "daily" });
  const first = await create({ display_name: "One" });
  await user.call("DELETE", `/api/assistants/${first.body.id}`);
  await reef.sql`update idempotency_keys set created_at = created_at - interval '25 hours' where user_id = ${user.id}`;
  const second = await create({ display_name: "Two" });
  expect([second.status, second.body.display_name]).toEqual([201, "Two"]);
  expect(second.body.id).not.toBe(first.body.id);
});

test("kept answers go with time and with the assistant that they are about", async () => {
  const user = await makeUser(reef);
  const keep = (key: string) => user.call("PUT", "/api/user/profile", { name: "Ann" }, { "idempotency-key": key });
  const keysOf = async () =>
    (await reef.sql`select key from idempotency_keys where user_id = ${user.id} order by key`).map((row) => row["key"]);
  const old = await makeUser(reef);
  await old.call("PUT", "/api/user/profile", { name: "Old" }, { "idempotency-key": "old" });
  await reef.sql`update idempotency_keys set created_at = now() - interval '25 hours' where user_id = ${old.id}`;
  await keep("one");
  expect(await reef.sql`select 1 from idempotency_keys where user_id = ${old.id}`).toHaveLength(0);
  const assistant = await makeAssistant(user);
  const message = { content: "a word to be gone", client_id: crypto.randomUUID() };
  const path = `/api/assistants/${assistant.id}`;
  await user.call("POST", `${path}/messages`, message, { "idempotency-key": "two" });
  expect(await keysOf()).toEqual(["one", "two"]);
  await user.call("DELETE", path);
  await until("it is purged", async () => {
    const [row] = await reef.sql`select purge_step from assistants where id = ${assistant.id}`;
    return row!["purgeStep"] === "purged";
  });
  expect(await keysOf()).toEqual(["one"]);
});

test("a creation whose answer was lost is found again under the same key, not made twice", async () => {
  const user = await makeUser(reef);
  const create = () => user.call("POST", "/api/assistants", {}, { "idempotency-key": "again" });
  const first = await create();
  // As its process left it when it died, or gave it back, after the commit.
  for (const claimedAt of ["-infinity", new Date(Date.now() - 60_000).toISOString()]) {
    await reef.sql`
      update idempotency_keys set status = null, response = null, claimed_at = ${claimedAt}::text::timestamptz where user_id = ${user.id}`;
    const second = await create();
    expect([second.status, second.body.id]).toEqual([201, first.body.id]);
  }
});

test("without Redis it is ready, and health names it", async () => {
  const other = await startProcess({ ...reef.env, REDIS_URL: "redis://127.0.0.1:1" });
  try {
    expect((await call(other.url, "GET", "/readyz")).status).toBe(200);
    const health = await call(other.url, "GET", "/health");
    expect([health.status, health.body.down]).toEqual([503, ["redis"]]);
  } finally {
    await other.stop();
  }
});
