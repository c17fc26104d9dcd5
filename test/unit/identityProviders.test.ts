import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { createHash, createHmac } from "node:crypto";
import { exportPKCS8, generateKeyPair, importPKCS8, SignJWT } from "jose";
import { createIdentityProviders, type Provider } from "../../src/clients/identityProviders.ts";
import type { KeyTiming } from "../../src/clients/providerKeys.ts";
import { loadConfig } from "../../src/config.ts";
import type { AppError } from "../../src/lib/errors.ts";
import { createLog } from "../../src/lib/log.ts";
import { startFakeIdentityProvider, type FakeIdentityProvider, type Trouble } from "../fakes/identityProvider.ts";
import { until } from "../harness.ts";

const BASE = {
  DATABASE_URL: "postgres://u:p@127.0.0.1/x",
  REDIS_URL: "redis://127.0.0.1",
  JWT_SECRET: "x".repeat(32),
  OPENCLAW_GATEWAY_URL: "ws://127.0.0.1:1",
  OPENCLAW_GATEWAY_TOKEN: "x".repeat(16),
  OPENCLAW_GATEWAY_DIR: "gateway",
};
const ADA = { sub: "ada", email: "ada@gmail.com", email_verified: true };
const NOW = () => Math.floor(Date.now() / 1000);

let apple: FakeIdentityProvider;
let google: FakeIdentityProvider;
let lines: string[];
beforeAll(async () => {
  apple = await startFakeIdentityProvider("apple");
  google = await startFakeIdentityProvider("google");
});
afterAll(() => Promise.all([apple.stop(), google.stop()]));
beforeEach(() => {
  lines = [];
  apple.trouble = google.trouble = null;
});

/** A fresh client, which knows no keys yet. */
function connect(env: Record<string, string> = {}, timing?: KeyTiming) {
  const config = loadConfig({ ...BASE, ...apple.env, ...google.env, ...env });
  const log = createLog("info", { write: (line: string) => void lines.push(line) });
  const providers = createIdentityProviders(config, log, timing);
  return {
    verify: (provider: Provider, idToken: string, nonce: string | null = null, maxAgeSeconds = 3600) =>
      providers.verify(provider, { idToken, nonce, maxAgeSeconds }),
    codeOf: (provider: Provider, idToken: string, nonce: string | null = null, maxAgeSeconds = 3600) =>
      providers.verify(provider, { idToken, nonce, maxAgeSeconds }).then(
        (identity) => identity.subject,
        (error: AppError) => error.code,
      ),
  };
}

const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");
const claimsOf = (token: string) => token.split(".")[1]!;

test("a good token of each provider says who it is; Apple may write its booleans as strings", async () => {
  const { verify } = connect();
  const ofApple = await apple.sign({
    sub: "001.a",
    email: "Ada@Example.org",
    email_verified: "true",
    nonce_supported: true,
  });
  expect(await verify("apple", ofApple)).toEqual({
    provider: "apple",
    subject: "001.a",
    clientId: apple.clientId,
    email: "Ada@Example.org",
    ownsEmail: true,
    name: null,
  });
  const ofGoogle = await google.sign({ ...ADA, azp: "android.client", name: "Ada L." });
  expect(await verify("google", ofGoogle)).toMatchObject({ subject: "ada", email: "ada@gmail.com", name: "Ada L." });
});

test("Google's issuer may stand without its scheme; Apple's may not", async () => {
  const { codeOf } = connect();
  expect(await codeOf("google", await google.sign({ ...ADA, iss: google.url.slice("http://".length) }))).toBe("ada");
  const bare = await apple.sign({ ...ADA, iss: apple.url.slice("http://".length) });
  expect(await codeOf("apple", bare)).toBe("invalid_id_token");
});

test("Google vouches for addresses that it hosts only, and for none that is not verified", async () => {
  const { verify } = connect();
  const seen = [];
  for (const claims of [
    { sub: "1", email: "A@GMAIL.com", email_verified: true },
    { sub: "2", email: "a@firm.example", email_verified: true, hd: "firm.example" },
    { sub: "3", email: "a@firm.example", email_verified: true },
    { sub: "4", email: "a@gmail.com", email_verified: false },
    { sub: "5", email: "a@gmail.com" },
    { sub: "6" },
    { sub: "7", email: "a@gmail.com", email_verified: "yes" },
    { sub: "8", email: "а@gmail.com", email_verified: true },
    { sub: "9", email: `${"a".repeat(250)}@gmail.com`, email_verified: true },
    { sub: "10", email: { $ne: "" }, email_verified: true, hd: 1, name: 5 },
    { sub: "11", email: "a@gmail.com.example", email_verified: true },
  ]) {
    const identity = await verify("google", await google.sign(claims));
    seen.push([identity.email, identity.ownsEmail]);
  }
  expect(seen).toEqual([
    ["A@GMAIL.com", true],
    ["a@firm.example", true],
    ["a@firm.example", false],
    ...Array(7).fill([null, false]),
    ["a@gmail.com.example", false],
  ]);
});

describe("refused", () => {
  const cases: Record<string, () => Promise<string> | string> = {
    "no token at all": () => "x",
    "three empty parts": () => "..",
    "a token cut short": async () => (await google.sign(ADA)).slice(0, -5),
    "alg none": async () => `${encode({ alg: "none", kid: google.key.kid })}.${claimsOf(await google.sign(ADA))}.`,
    "HS256 with the public key as its secret": async () => {
      const head = `${encode({ alg: "HS256", kid: google.key.kid })}.${claimsOf(await google.sign(ADA))}`;
      return `${head}.${createHmac("sha256", google.key.publicPem).update(head).digest("base64url")}`;
    },
    "another algorithm of the right key": async () => {
      const key = await importPKCS8(await exportPKCS8(google.key.privateKey), "PS256");
      return new SignJWT({ ...ADA, iss: google.url, aud: google.clientId, iat: NOW(), exp: NOW() + 60 })
        .setProtectedHeader({ alg: "PS256", kid: google.key.kid })
        .sign(key);
    },
    "another key under the right id": async () => {
      const { privateKey } = await generateKeyPair("RS256");
      return new SignJWT({ ...ADA, iss: google.url, aud: google.clientId, iat: NOW(), exp: NOW() + 60 })
        .setProtectedHeader({ alg: "RS256", kid: google.key.kid })
        .sign(privateKey);
    },
    "a key that the token brings along": async () => {
      const { privateKey, publicKey } = await generateKeyPair("RS256", { extractable: true });
      const jwk = await crypto.subtle.exportKey("jwk", publicKey);
      return new SignJWT({ ...ADA, iss: google.url, aud: google.clientId, iat: NOW(), exp: NOW() + 60 })
        .setProtectedHeader({ alg: "RS256", jwk: { kty: "RSA", n: jwk.n!, e: jwk.e! } })
        .sign(privateKey);
    },
    "changed claims": async () => {
      const [head, , signature] = (await google.sign(ADA)).split(".");
      return `${head}.${encode({ ...ADA, sub: "eve", iss: google.url, aud: google.clientId, iat: NOW(), exp: NOW() + 60 })}.${signature}`;
    },
    "an unknown key id": () => google.sign(ADA, { kid: "unknown" }),
    "another audience": () => google.sign({ ...ADA, aud: "another.app" }),
    "several audiences": () => google.sign({ ...ADA, aud: [google.clientId, "another.app"] }),
    "no audience": () => google.sign({ ...ADA, aud: undefined }),
    "asked for by another app": () => google.sign({ ...ADA, azp: "another.app" }),
    "another issuer": () => google.sign({ ...ADA, iss: "https://accounts.example.org" }),
    expired: () => google.sign({ ...ADA, iat: NOW() - 700, exp: NOW() - 1 }),
    "no expiry": () => google.sign({ ...ADA, exp: undefined }),
    "not valid yet": () => google.sign({ ...ADA, nbf: NOW() + 300 }),
    "issued in the future": () => google.sign({ ...ADA, iat: NOW() + 120, exp: NOW() + 700 }),
    "issued more than an hour ago, though it lives a day": () =>
      google.sign({ ...ADA, iat: NOW() - 3700, exp: NOW() + 80_000 }),
    "no time of issue": () => google.sign({ ...ADA, iat: undefined }),
    "a time of issue that is no number": () => google.sign({ ...ADA, iat: "now" }),
    "no subject": () => google.sign({ ...ADA, sub: undefined }),
    "an empty subject": () => google.sign({ ...ADA, sub: "" }),
    "a subject with NUL": () => google.sign({ ...ADA, sub: "a\u0000b" }),
    "a subject that is far too long": () => google.sign({ ...ADA, sub: "a".repeat(256) }),
    "a token of Apple": () => apple.sign(ADA),
    "a token of Apple that claims to be Google's": () =>
      apple.sign({ ...ADA, iss: google.url, aud: google.clientId }, { kid: google.key.kid }),
  };
  for (const [name, make] of Object.entries(cases)) {
    test(name, async () => {
      const { codeOf } = connect();
      const token = await make();
      expect(await codeOf("google", token)).toBe("invalid_id_token");
      expect(await codeOf("google", await google.sign(ADA))).toBe("ada");
      if (token.length > 3) expect(lines.join("")).not.toContain(token);
      expect(lines.join("")).not.toContain(ADA.email);
    });
  }
});

test("a clock that is a little ahead, and a token of half an hour, are nothing bad; fresh means ten minutes", async () => {
  const { codeOf } = connect();
  expect(await codeOf("google", await google.sign({ ...ADA, iat: NOW() + 30 }))).toBe("ada");
  const older = await google.sign({ ...ADA, iat: NOW() - 1800 });
  expect(await codeOf("google", older)).toBe("ada");
  expect(await codeOf("google", older, null, 600)).toBe("invalid_id_token");
});

test("nonces: given exactly when the token has one; Apple's is hashed, and its hash is no answer", async () => {
  const { codeOf } = connect();
  const hash = (raw: string) => createHash("sha256").update(raw).digest("hex");
  const token = {
    apple: await apple.sign({ ...ADA, nonce: hash("raw") }),
    appleRaw: await apple.sign({ ...ADA, nonce: "raw" }),
    google: await google.sign({ ...ADA, nonce: "raw" }),
    googleHashed: await google.sign({ ...ADA, nonce: hash("raw") }),
    none: await google.sign(ADA),
    empty: await google.sign({ ...ADA, nonce: "" }),
  };
  for (const [provider, idToken] of [
    ["apple", token.apple],
    ["google", token.google],
    ["google", token.googleHashed],
  ] as const)
    expect(await codeOf(provider, idToken, "raw")).toBe("ada");
  for (const [provider, idToken, nonce] of [
    ["apple", token.apple, null],
    ["apple", token.apple, "other"],
    ["apple", token.apple, hash("raw")],
    ["apple", token.appleRaw, "raw"],
    ["google", token.google, null],
    ["google", token.google, "Raw"],
    ["google", token.none, "raw"],
    ["google", token.empty, null],
  ] as const)
    expect([provider, nonce, await codeOf(provider, idToken, nonce)]).toEqual([provider, nonce, "invalid_id_token"]);
});

test("a provider without client ids is not offered, and is not asked for its keys", async () => {
  const before = google.counts["/auth/keys"];
  expect(await connect({ GOOGLE_CLIENT_IDS: "" }).codeOf("google", await google.sign(ADA))).toBe(
    "provider_not_configured",
  );
  expect(google.counts["/auth/keys"]).toBe(before);
});

test("a rotated key works without a restart; the old one is refused from then on", async () => {
  const { codeOf } = connect({}, { cooldownMs: 0 });
  const old = await google.sign(ADA);
  expect(await codeOf("google", old)).toBe("ada");
  await google.rotate();
  expect(await codeOf("google", await google.sign(ADA))).toBe("ada");
  expect(await codeOf("google", old)).toBe("invalid_id_token");
});

test("two hundred tokens with invented key ids, and as many good ones, ask the provider once", async () => {
  const { codeOf } = connect();
  const before = google.counts["/auth/keys"];
  const good = await google.sign(ADA);
  const bad = await Promise.all(Array.from({ length: 200 }, (_, i) => google.sign(ADA, { kid: `invented-${i}` })));
  const codes = await Promise.all(bad.flatMap((token) => [codeOf("google", token), codeOf("google", good)]));
  expect(Map.groupBy(codes, (code) => code).get("ada")?.length).toBe(200);
  expect(Map.groupBy(codes, (code) => code).get("invalid_id_token")?.length).toBe(200);
  expect(google.counts["/auth/keys"] - before).toBe(1);
});

for (const trouble of ["error", "garbage", "huge", "redirect", "bad key", "hang", "stall"] as Trouble[]) {
  test(`a provider in trouble (${trouble}) is unavailable, not wrong, and is asked again later`, async () => {
    const { codeOf } = connect({}, { cooldownMs: 0 });
    const token = await google.sign(ADA, trouble === "bad key" ? { kid: "bad" } : {});
    google.trouble = trouble;
    expect(await codeOf("google", token)).toBe("provider_unavailable");
    google.trouble = null;
    await until("it recovers", async () => (await codeOf("google", await google.sign(ADA))) === "ada");
  });
}

test("keys that have grown old while the provider is down serve on", async () => {
  const { codeOf } = connect({}, { cacheMs: 0 });
  const before = google.counts["/auth/keys"];
  for (const trouble of [null, "error", "garbage"] as const) {
    google.trouble = trouble;
    expect(await codeOf("google", await google.sign(ADA))).toBe("ada");
  }
  expect(google.counts["/auth/keys"] - before).toBe(3);
  expect(await codeOf("google", await google.sign({ ...ADA, aud: "other" }))).toBe("invalid_id_token");
});

test("a provider that is down: no storm of requests, no 401, and known keys go on", async () => {
  const fresh = connect();
  const knowing = connect({}, { cooldownMs: 0 });
  const token = await google.sign(ADA);
  expect(await knowing.codeOf("google", token)).toBe("ada");
  const storm = () => Promise.all(Array.from({ length: 50 }, () => fresh.codeOf("google", token)));
  const before = google.counts["/auth/keys"];
  google.trouble = "error";
  expect(new Set([...(await storm()), ...(await storm())])).toEqual(new Set(["provider_unavailable"]));
  expect(google.counts["/auth/keys"] - before).toBe(1);
  google.trouble = null;
  await google.goDown();
  expect(new Set(await storm())).toEqual(new Set(["provider_unavailable"]));
  expect(await knowing.codeOf("google", await google.sign(ADA, { kid: "rotated" }))).toBe("provider_unavailable");
  expect(await knowing.codeOf("google", token)).toBe("ada");
  expect(lines.filter((line) => line.includes("can't be fetched")).length).toBe(2);
  google.comeBack();
  await until("it recovers", async () => (await fresh.codeOf("google", token)) === "ada");
  expect(await knowing.codeOf("google", await google.sign(ADA, { kid: "rotated" }))).toBe("invalid_id_token");
});
