import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { SignJWT, UnsecuredJWT } from "jose";
import { call, makeAssistant, makeUser, openChat, type Json, type TestUser } from "../factories.ts";
import { startTestReef, type TestReef } from "../harness.ts";

let reef: TestReef;
let user: TestUser;
let stranger: TestUser;
let agentId: string;
beforeAll(async () => {
  reef = await startTestReef();
  user = await makeUser(reef);
  stranger = await makeUser(reef);
  agentId = (await makeAssistant(user)).agent_id;
});
afterAll(() => reef.stop());

const claimsOf = (token: string): Json => JSON.parse(Buffer.from(token.split(".")[1]!, "base64url").toString());
const now = () => Math.floor(Date.now() / 1000);
const part = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");

interface Forging {
  secret?: string;
  claims?: Record<string, unknown>;
  without?: string;
  alg?: string;
}

/** The user's own token, signed anew with something changed. */
function forge({ secret = reef.deps.config.JWT_SECRET, claims = {}, without, alg = "HS256" }: Forging) {
  const all: Json = { ...claimsOf(user.token), ...claims };
  if (without) delete all[without];
  return new SignJWT(all).setProtectedHeader({ alg, typ: "JWT" }).sign(new TextEncoder().encode(secret));
}

const attacks: [string, () => Promise<string> | string, string][] = [
  ["alg none", () => new UnsecuredJWT(claimsOf(user.token)).encode(), "unauthorized"],
  [
    "alg None with the old signature",
    () => `${part({ alg: "None" })}.${user.token.split(".").slice(1).join(".")}`,
    "unauthorized",
  ],
  ["no signature", () => `${user.token.split(".").slice(0, 2).join(".")}.`, "unauthorized"],
  ["another signature", () => `${user.token.slice(0, -4)}AAAA`, "unauthorized"],
  [
    "another's claims under the own signature",
    () => `${user.token.split(".")[0]}.${stranger.token.split(".")[1]}.${user.token.split(".")[2]}`,
    "unauthorized",
  ],
  ["wrong key", () => forge({ secret: "another-secret-of-enough-characters" }), "unauthorized"],
  ["another algorithm with the right key", () => forge({ alg: "HS512" }), "unauthorized"],
  ["wrong audience", () => forge({ claims: { aud: "reef:operator" } }), "unauthorized"],
  ["no audience", () => forge({ without: "aud" }), "unauthorized"],
  ...["sub", "sid", "exp", "iat", "jti"].map((claim): [string, () => Promise<string>, string] => [
    `no ${claim}`,
    () => forge({ without: claim }),
    "unauthorized",
  ]),
  ["a subject that is no id", () => forge({ claims: { sub: "x' or '1'='1" } }), "unauthorized"],
  ["issued an hour from now", () => forge({ claims: { iat: now() + 3600, exp: now() + 4500 } }), "unauthorized"],
  ["issued two minutes from now", () => forge({ claims: { iat: now() + 120 } }), "unauthorized"],
  ["expired", () => forge({ claims: { exp: now() - 1 } }), "token_expired"],
  ["not valid yet", () => forge({ claims: { nbf: now() + 600 } }), "unauthorized"],
  [
    "another's session with the own subject",
    () => forge({ claims: { sid: claimsOf(stranger.token).sid } }),
    "unauthorized",
  ],
  ["the own session with another's subject", () => forge({ claims: { sub: stranger.id } }), "unauthorized"],
  ["a session that never was", () => forge({ claims: { sid: crypto.randomUUID() } }), "unauthorized"],
  ["a refresh token", () => user.refreshToken, "unauthorized"],
  ["sixty thousand characters", () => "x".repeat(15_000), "unauthorized"],
];

describe("an access token is refused", () => {
  test("but an unchanged copy is taken, and one of a clock slightly ahead: the rest is refused for what it names", async () => {
    expect((await call(reef.url, "GET", "/api/assistants", undefined, await forge({}))).status).toBe(200);
    const ahead = await forge({ claims: { iat: now() + 30 } });
    expect((await call(reef.url, "GET", "/api/assistants", undefined, ahead)).status).toBe(200);
  });
  for (const [name, make, code] of attacks) {
    test(name, async () => {
      const token = await make();
      const answer = await call(reef.url, "GET", "/api/assistants", undefined, token);
      expect([answer.status, answer.body.code]).toEqual([401, code]);
      if (token.length > 2000) return;
      const chat = await openChat(reef, token, agentId);
      expect([chat.frames, chat.closed?.code]).toEqual([[], 1008]);
    });
  }
  test("in another scheme, or given twice", async () => {
    for (const authorization of [`Basic ${user.token}`, user.token, "Bearer", `Bearer  ${user.token}`]) {
      const answer = await call(reef.url, "GET", "/api/assistants", undefined, undefined, { authorization });
      expect(answer.body.code).toBe("unauthorized");
    }
  });
});

test("refresh tokens of another make, another session, another counter or branch are refused and end nothing", async () => {
  const one = await makeUser(reef);
  const bytes = Buffer.from(one.refreshToken.slice(3), "base64url");
  const changed = (at: number, value: number) => {
    const copy = Buffer.from(bytes);
    copy[at] = value;
    return `rt_${copy.toString("base64url")}`;
  };
  const other = Buffer.from(stranger.refreshToken.slice(3), "base64url");
  const mixed = `rt_${Buffer.concat([other.subarray(0, 24), bytes.subarray(24)]).toString("base64url")}`;
  const forged = [
    changed(19, 1),
    changed(23, 1),
    changed(0, 0xff),
    changed(55, bytes[55]! ^ 1),
    mixed,
    "rt_",
    "x",
    one.token,
  ];
  for (const token of forged) {
    const answer = await call(reef.url, "POST", "/api/auth/refresh", { refresh_token: token.slice(0, 512) });
    expect([answer.status, answer.body.code]).toEqual([401, "invalid_refresh_token"]);
  }
  expect((await call(reef.url, "POST", "/api/auth/refresh", { refresh_token: one.refreshToken })).status).toBe(200);
});
