import { afterAll, beforeAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { call } from "../factories.ts";
import { startTestReef, type TestReef } from "../harness.ts";

let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef({ TRUSTED_PROXIES: "1" })));
afterAll(() => reef.stop());

const jail = readFileSync(resolve(import.meta.dir, "../../deploy/fail2ban/reef-signin.conf"), "utf8");
/** fail2ban's expression, as JavaScript's: what it finds is the address that would be banned. */
const failregex = new RegExp(/^failregex = (.*)$/m.exec(jail)![1]!.replace("<ADDR>", "([0-9a-fA-F.:]+)"));
const banned = () => reef.logs.flatMap((line) => failregex.exec(line.trim())?.[1] ?? []);
const logIn = (email: string, ip: string) =>
  call(reef.url, "POST", "/api/auth/login", { email, password: "not the right one" }, undefined, {
    "x-forwarded-for": ip,
  });

test("a refused sign-in leaves one line that fail2ban's filter knows, with the address and nothing of the account", async () => {
  expect((await logIn("nobody@example.com", "203.0.113.5")).status).toBe(401);
  expect(banned()).toEqual(["203.0.113.5"]);
  expect(reef.logs.join("")).not.toContain("nobody@");
  // Beyond the throttle it is refused without a look, and still counts.
  for (let tries = 0; tries < 10; tries++) await logIn("nobody@example.com", "203.0.113.5");
  expect((await logIn("nobody@example.com", "203.0.113.5")).status).toBe(429);
  expect(banned()).toEqual(Array(12).fill("203.0.113.5"));
});

test("nobody has another address banned by what is sent", async () => {
  const line = `{"level":"warn","time":"x","request_id":"abcdefgh","ip":"198.51.100.9","code":"x","msg":"sign-in refused"}`;
  await fetch(`${reef.url}/${encodeURIComponent(line)}`);
  await fetch(`${reef.url}/${line}`, { headers: { "x-request-id": line, "user-agent": line } });
  await logIn(line, "203.0.113.6");
  expect(banned()).not.toContain("198.51.100.9");
});

test("each jail bans by what ufw brings, whatever the distribution's own way is", () => {
  const jails = readFileSync(resolve(import.meta.dir, "../../deploy/fail2ban/reef.local"), "utf8")
    .split(/^(?=\[)/m)
    .slice(1);
  expect(jails.map((text) => /^\[(.*)\]/.exec(text)![1])).toEqual(["sshd", "reef-signin"]);
  for (const text of jails) expect(text).toMatch(/^banaction = iptables-multiport$/m);
});
