import { expect, test } from "bun:test";
import { generateKeyPairSync } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parseEnv } from "node:util";
import { renderEnvExample } from "../../scripts/envExample.ts";
import { ConfigError, loadConfig, loadFilesConfig } from "../../src/config.ts";
import { LIST_PRICES } from "../../src/lib/prices.ts";

const GOOD = {
  DATABASE_URL: "postgres://u:p@127.0.0.1/x",
  REDIS_URL: "redis://127.0.0.1",
  JWT_SECRET: "x".repeat(32),
  OPENCLAW_GATEWAY_URL: "ws://127.0.0.1:1",
  OPENCLAW_GATEWAY_TOKEN: "x".repeat(16),
  OPENCLAW_GATEWAY_DIR: "gateway",
};

function faultsOf(env: Record<string, string>): string[] {
  try {
    loadConfig(env);
    return [];
  } catch (error) {
    return (error as ConfigError).faults;
  }
}

test(".env.example says what the schema says", () => {
  expect(readFileSync(join(import.meta.dir, "../../.env.example"), "utf8")).toBe(renderEnvExample());
});

test("every fault is named at once, by name, never by value", () => {
  const faults = faultsOf({
    ...GOOD,
    PORT: "seventy",
    JWT_SECRET: "short-secret",
    REDIS_URL: "http://hidden-value",
    DATABASE_URL: "",
  });
  expect(faults.map((fault) => fault.split(/[ :]/)[0]!).sort((a, b) => a.localeCompare(b))).toEqual([
    "DATABASE_URL",
    "JWT_SECRET",
    "PORT",
    "REDIS_URL",
  ]);
  for (const value of ["seventy", "short-secret", "hidden-value"]) expect(faults.join()).not.toContain(value);
});

test("an address that the client could not decode is a fault of its variable", () => {
  expect(faultsOf({ ...GOOD, DATABASE_URL: "postgres://u:100%@127.0.0.1/x" })).toEqual([
    "DATABASE_URL must be percent-encoded",
  ]);
  expect(faultsOf({ ...GOOD, DATABASE_URL: "postgres://u:100%25@127.0.0.1/x" })).toEqual([]);
});

test("empty is absent; defaults; whether a taken address is told follows the environment's kind", () => {
  const config = loadConfig({ ...GOOD, PORT: "  ", NODE_ENV: "development" });
  expect([config.PORT, config.REVEAL_EMAIL_TAKEN]).toEqual([3000, true]);
  expect(loadConfig(GOOD).REVEAL_EMAIL_TAKEN).toBe(false);
});

test("a broken configuration ends the process with 78 and a sentence, without a stack trace", async () => {
  const child = Bun.spawn([process.execPath, "--no-env-file", join(import.meta.dir, "../../src/main.ts")], {
    env: { PORT: "x" },
    stderr: "pipe",
    stdout: "ignore",
  });
  const said = await new Response(child.stderr).text();
  expect(await child.exited).toBe(78);
  expect(said).toContain("JWT_SECRET is missing");
  expect(said).not.toContain("    at ");
});

test("Apple's key: all of it or nothing, an EC key on P-256, line ends written out", () => {
  const pem = (namedCurve: string) =>
    generateKeyPairSync("ec", { namedCurve }).privateKey.export({ type: "pkcs8", format: "pem" }) as string;
  const apple = (APPLE_PRIVATE_KEY: string) => ({ ...GOOD, APPLE_TEAM_ID: "t", APPLE_KEY_ID: "k", APPLE_PRIVATE_KEY });
  const key = pem("P-256");
  expect(loadConfig(apple(key.replaceAll("\n", "\\n"))).APPLE_PRIVATE_KEY).toBe(key);
  for (const bad of [pem("P-384"), "hidden-value"])
    expect(faultsOf(apple(bad))).toEqual(["APPLE_PRIVATE_KEY must be the text of the .p8 file (an EC key on P-256)"]);
  expect(faultsOf({ ...GOOD, APPLE_TEAM_ID: "t" }).map((fault) => fault.split(" ")[0])).toEqual([
    "APPLE_KEY_ID",
    "APPLE_PRIVATE_KEY",
  ]);
});

test("the sender of mails is an address, with or without a name, and never two lines", () => {
  const faults = (MAIL_FROM: string) => {
    try {
      loadConfig({ MAIL_FROM });
      return [];
    } catch (error) {
      return (error as ConfigError).faults.filter((fault) => fault.startsWith("MAIL_FROM"));
    }
  };
  for (const good of ["a@b.example", "Reef <a@b.example>", "<a@b.example>"]) expect(faults(good)).toEqual([]);
  for (const bad of ["Reef", "Reef <a>", "a@b.example\r\nBcc: c@d.example", "A <a@b.example>, B <c@d.example>"])
    expect(faults(bad)).toEqual(["MAIL_FROM must be an address or Name <address>"]);
});

test("pages are named exactly as browsers send them: no star, no path, no slash", () => {
  for (const CORS_ORIGINS of [
    "*",
    "https://app.example.com/",
    "https://*.example.com",
    "app.example.com",
    "null",
    "https://a.example:443",
  ])
    expect(faultsOf({ ...GOOD, CORS_ORIGINS })).toEqual([
      "CORS_ORIGINS must be origins like https://app.example.com, without a path",
    ]);
  expect(
    loadConfig({ ...GOOD, CORS_ORIGINS: "https://a.example, http://localhost:5173,capacitor://localhost" }).CORS_ORIGINS
      .length,
  ).toBe(3);
});

test("prices: the list's by default, a model that is named has its own; faults by name only; the example can be taken as it is", () => {
  const priced = (PRICES: string) => loadConfig({ ...GOOD, PRICES }).PRICES;
  expect(loadConfig(GOOD).PRICES).toEqual(LIST_PRICES);
  expect(priced(" ")).toEqual(LIST_PRICES);
  expect(priced('{"tts-1":{"characters":20},"my-model":{"minute":0.001}}')).toEqual({
    ...LIST_PRICES,
    "tts-1": { characters: 20 },
    "my-model": { minute: 0.001 },
  });
  for (const bad of [
    "hidden-value",
    '{"hidden-value":',
    "[]",
    "null",
    "1",
    '{"hidden-value":{"input":-1}}',
    '{"hidden-value":{"input":"1"}}',
    '{"hidden-value":{"hour":1}}',
    '{"hidden-value":{"minute":2000000}}',
    '{"":{}}',
    '{"hidden-value":{"input":-1,"output":-1},"m":1}',
  ]) {
    const faults = faultsOf({ ...GOOD, PRICES: bad });
    expect([bad, faults.length, faults[0]?.split(/[ :.]/)[0]]).toEqual([bad, 1, "PRICES"]);
    expect(faults.join()).not.toContain("hidden-value");
  }
  const example = /^#(PRICES=.+)$/m.exec(renderEnvExample())![1]!;
  const { PRICES } = parseEnv(example);
  expect(priced(PRICES!)).toEqual(LIST_PRICES);
});

test("a process without a gateway needs none of its settings; the files process has a token, and so has who asks it", () => {
  const { OPENCLAW_GATEWAY_URL: _, OPENCLAW_GATEWAY_TOKEN: __, OPENCLAW_GATEWAY_DIR: ___, ...front } = GOOD;
  expect(loadConfig({ ...front, ROLE: "front", GATEWAY_ID: "main" })).toMatchObject({
    ROLE: "front",
    GATEWAY_ID: "none",
  });
  expect(faultsOf(front).length).toBe(3);
  expect(faultsOf({ ...GOOD, GATEWAY_ID: "none" })[0]).toStartWith("GATEWAY_ID must not be");
  expect(faultsOf({ ...GOOD, ROLE: "back" })[0]).toStartWith("ROLE");
  expect(faultsOf({ ...GOOD, GATEWAY_FILES_URL: "http://10.0.0.2:18790" })[0]).toStartWith("GATEWAY_FILES_TOKEN");
  expect(() => loadFilesConfig({ OPENCLAW_GATEWAY_DIR: "/x" })).toThrow("GATEWAY_FILES_TOKEN is missing");
  const files = loadFilesConfig({ OPENCLAW_GATEWAY_DIR: "/x", GATEWAY_FILES_TOKEN: "x".repeat(16) });
  // What no header carries as it is would be refused for ever.
  for (const bad of ["ends with a space ", " begins with one 1", "ключключключключ", `${"x".repeat(16)}\ny`])
    expect(faultsOf({ ...GOOD, GATEWAY_FILES_TOKEN: bad })).toEqual([
      "GATEWAY_FILES_TOKEN must be one word of plain characters",
    ]);
  expect(files).toMatchObject({ GATEWAY_FILES_HOST: "127.0.0.1", GATEWAY_FILES_PORT: 18790 });
});
