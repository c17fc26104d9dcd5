import { afterAll, beforeAll, beforeEach, expect, test } from "bun:test";
import { connect, type Socket } from "node:net";
import { Hono } from "hono";
import type { Env } from "../../src/http/env.ts";
import { takeLargeBody } from "../../src/http/largeBody.ts";
import { renderProblem } from "../../src/http/problem.ts";
import { createMemoryBudget } from "../../src/lib/memoryBudget.ts";
import { createLog } from "../../src/lib/log.ts";
import { makeUser, type TestUser } from "../factories.ts";
import { until } from "../harness.ts";
import {
  expectFree,
  expectSound,
  fixture,
  hearBytes,
  readAnswer,
  send,
  startVoiceTown,
  type Sent,
  type VoiceTown,
} from "./voiceTown.ts";

const MB = 1024 * 1024;
const LIMIT = 25 * MB;

let town: VoiceTown;
let user: TestUser;
beforeAll(async () => void (town = await startVoiceTown({ VOICE_MEMORY_BYTES: String(50 * MB) })));
afterAll(() => town.stop());
beforeEach(async () => void (user = await makeUser(town.reef)));

/** A request written by hand. */
interface Wire {
  socket: Socket;
  /** All that came back. */
  text(): string;
  status(): Promise<number>;
  close(): void;
}

function open(path: string, headers: string[], token: string | null = user.token, method = "POST"): Wire {
  const socket = connect(Number(new URL(town.reef.url).port), "127.0.0.1");
  let text = "";
  socket.on("data", (data) => (text += data.toString("latin1")));
  socket.on("error", () => undefined);
  const lines = [
    `${method} ${path} HTTP/1.1`,
    "Host: reef",
    ...(token ? [`Authorization: Bearer ${token}`] : []),
    ...headers,
  ];
  socket.write(`${lines.join("\r\n")}\r\n\r\n`);
  return {
    socket,
    text: () => text,
    status: () => until("it is answered", () => Number(/^HTTP\/1\.1 (\d+)/.exec(text)?.[1] ?? 0)),
    close: () => void socket.destroy(),
  };
}

const codeOf = (wire: Wire) => /"code":"(\w+)"/.exec(wire.text())?.[1];
const TYPE = "Content-Type: audio/wav";
const held = (bytes: number) => `Content-Length: ${bytes}`;

test("26 MB: refused by its length before a byte is sent, or while it comes", async () => {
  for (const path of ["/api/voice/transcribe", "/api/voice/speak"]) {
    const declared = open(path, [TYPE, held(26 * MB)]);
    expect([path, await declared.status()]).toEqual([path, 413]);
    await until("the code came", () => codeOf(declared) === "body_too_large");
    declared.close();

    const chunked = open(path, [TYPE, "Transfer-Encoding: chunked"]);
    const chunk = Buffer.concat([Buffer.from("100000\r\n"), Buffer.alloc(MB), Buffer.from("\r\n")]);
    for (let sent = 0; sent < 26 && chunked.text() === ""; sent++)
      await new Promise<void>((resolve) => void chunked.socket.write(chunk, () => resolve()));
    expect([path, await chunked.status()]).toEqual([path, 413]);
    chunked.close();
  }
  await expectFree(town.reef, user);
});

test("exactly 25 MB is read; elsewhere, and by another method, 64 KB is the limit as ever", async () => {
  const body = new Uint8Array(LIMIT);
  expect((await hearBytes(town.reef, user, body)).body.code).toBe("unsupported_audio");
  const spoken = await readAnswer(
    await send(town.reef, user, "speak", JSON.stringify({ text: "x".repeat(MB) }), {
      "content-type": "application/json",
    }),
  );
  expect([spoken.status, spoken.body.code]).toEqual([400, "validation_failed"]);
  for (const [method, path] of [
    ["POST", "/api/assistants"],
    ["PUT", "/api/voice/transcribe"],
    ["POST", "/api/voice/transcribe/"],
    ["POST", "/api/voice"],
  ] as const) {
    const wire = open(path, [TYPE, held(65 * 1024)], user.token, method);
    expect([path, await wire.status()]).toEqual([path, 413]);
    wire.close();
  }
});

test("a body of nothing but fields, values or brackets: refused in few words, before it is taken apart", async () => {
  const json = { "content-type": "application/json" };
  const many = (count: number, part: (n: number) => string) => Array.from({ length: count }, (_, n) => part(n)).join();
  for (const [body, faults] of [
    [`{${many(200_000, (n) => `"k${n}":0`)}}`, 1],
    [`{"text":[${many(200_000, () => "0")}],"audio":0}`, 1],
    ["[".repeat(200_000), 1],
    // Few enough to be read, too many to be named.
    [`{${many(5_000, (n) => `"a field number ${n}":0`)}}`, 21],
  ] as const)
    for (const path of ["transcribe", "speak"] as const) {
      const answer = await readAnswer(
        await send(town.reef, user, path, body, { ...json, "idempotency-key": `${faults}${body.length}` }),
      );
      expect([answer.status, answer.body.code, answer.body.details.length]).toEqual([400, "validation_failed", faults]);
    }
});

test("without a token nothing is read", async () => {
  const wire = open("/api/voice/transcribe", [TYPE, held(LIMIT)], null);
  expect(await wire.status()).toBe(401);
  wire.close();
});

test("what is held at a time is bounded: half for one user, all for all; who leaves makes room", async () => {
  const [second, third] = [await makeUser(town.reef), await makeUser(town.reef)];
  const sound = fixture("silence.ogg");
  /** Two uploads at once, each of all that one user may hold: the one that goes on. */
  const hold = async (token: string) => {
    const pair = [1, 2].map(() => open("/api/voice/transcribe", [TYPE, held(LIMIT)], token));
    const refused = await until("one is refused", () => pair.find((wire) => wire.text() !== ""));
    expect(await refused.status()).toBe(503);
    return pair.find((wire) => wire !== refused)!;
  };
  const first = await hold(user.token);
  const { status, body, headers } = await hearBytes(town.reef, user, sound);
  expect([status, body.code, body.retry_after, headers.get("retry-after")]).toEqual([
    503,
    "service_unavailable",
    2,
    "2",
  ]);
  expect((await hearBytes(town.reef, second, sound)).status).toBe(200);

  const other = await hold(second.token);
  expect((await hearBytes(town.reef, third, sound)).status).toBe(503);
  // Also for a body whose length shows only at its end.
  const chunked = open("/api/voice/transcribe", [TYPE, "Transfer-Encoding: chunked"], third.token);
  chunked.socket.write(`5\r\nhello\r\n0\r\n\r\n`);
  expect(await chunked.status()).toBe(503);
  expect((await user.call("GET", "/api/user/usage")).status).toBe(200);

  first.close();
  await until("there is room", async () => (await hearBytes(town.reef, third, sound)).status === 200);
  other.close();
  await until("there is room for the first, too", async () => (await hearBytes(town.reef, user, sound)).status === 200);
});

test("a body that never ends to come: 408, and its room is free", async () => {
  const budget = createMemoryBudget(1000);
  const app = new Hono<Env>();
  app.use(async (c, next) => {
    c.set("log", createLog("silent"));
    c.set("actor", { kind: "user", userId: "u", sessionId: "s", expiresAt: 0 });
    await next();
  });
  app.post("/", takeLargeBody(budget, 50)(400), (c) => c.text(String(c.get("body")!.length)));
  app.onError(renderProblem);
  const post = (body: Sent) => app.request("/", { method: "POST", body });
  const stuck = new ReadableStream({ start: (controller) => controller.enqueue(new Uint8Array(100)) });
  const answer = await post(stuck);
  expect([answer.status, ((await answer.json()) as { code: string }).code]).toEqual([408, "body_too_slow"]);
  expect(await (await post("x".repeat(400))).text()).toBe("400");
  expect(await (await post("")).text()).toBe("0");
  expect((await post("x".repeat(401))).status).toBe(413);
  expect(budget.held()).toBe(0);
});

test("all of it left the system sound", () => expectSound(town));
