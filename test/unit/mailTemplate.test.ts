import { describe, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { readMailTemplate } from "../../src/clients/mailTemplates.ts";
import { renderMailTemplate, showable } from "../../src/lib/mailTemplate.ts";
import { appLink, renderTime } from "../../src/services/mailContent.ts";

const folder = join(import.meta.dir, "../../templates/mail");
const names = readdirSync(folder)
  .filter((file) => file.endsWith(".txt"))
  .map((file) => file.replace(/\.txt$/, ""));

const HOSTILE = {
  markup: `<script>alert("1")</script><img src=x onerror='x()'>`,
  "line ends": "Ada\r\nBcc: everybody@example.org\r\n\r\nPay here",
  "other line ends": "Ada\u2028Bcc: x\u2029\u0085\u000bPay",
  long: "Long ".repeat(2000),
  "another direction": "\u202eadA\u202c \u2066x\u2069 \u200f",
  "Arabic and emoji": "آدا 👩‍🚀",
  "a link": "Click http://evil.example/win www.evil.example or mail me@evil.example",
  placeholders: "{{link}} {{> content}} $& $1 {{constructor}}",
  nothing: "\u0000\u200b \u2060",
};
const valuesFor = (name: string) => ({
  greeting: `Hello ${showable(name)},`,
  device: showable(name),
  network: "203.0.113.x",
  time: "24 November 2026 at 18:05 (Europe/Berlin)",
  from_plan: showable(name),
  to_plan: showable(name),
  plan: showable(name),
  kept: "Your plan stays as it is until 1 December 2026 at 18:05 (Europe/Berlin).",
  link: "https://app.example.org/verify-email?token=abc-_123&x=1",
});

test("every mail has its text and its HTML", () => {
  const files = readdirSync(folder).sort();
  expect(files).toEqual([...names.flatMap((name) => [`${name}.html`, `${name}.txt`]), "layout.html"].sort());
  expect(names.length).toBe(9);
});

describe.each(names)("%s", (template) => {
  for (const [kind, name] of Object.entries(HOSTILE)) {
    test(`holds with a name of ${kind}`, async () => {
      const { subject, text, html } = renderMailTemplate(await readMailTemplate(template), valuesFor(name));
      const control = /[\p{Cc}\u2028\u2029\u202a-\u202e\u2066-\u2069]/u;
      expect(subject).not.toMatch(control);
      expect(Array.from(subject).length).toBeWithin(10, 151);
      for (const part of [text, html]) {
        expect(part.replaceAll("\n", "")).not.toMatch(control);
        expect(part).not.toMatch(/\{\{(?!link\}\}|(>|&#62;) content\}\}|constructor\}\})|undefined|\[object/);
        expect(part.split("\n").some((line) => /^(Bcc|Pay)/.test(line))).toBe(false);
        expect(part).not.toMatch(/http:\/\/evil|www\.evil|@evil/);
        expect(part.length).toBeLessThan(8_000);
      }
      expect(html).not.toMatch(/<script|<img|onerror='/);
      expect(html).toStartWith("<!doctype html>");
      expect(html).toContain('lang="en"');
      expect(html.match(/<h1/g)?.length).toBe(1);
      // One link, said in both; nothing is fetched from anywhere.
      expect(html).not.toMatch(/<[^>]*src=|url\(|@import/);
      for (const [, href] of html.matchAll(/href="([^"]*)"/g))
        expect(href).toBe("https://app.example.org/verify-email?token=abc-_123&#38;x=1");
      expect(text.includes("token=abc-_123&x=1")).toBe(html.includes("href="));
    });
  }
});

test("an ordinary name is left alone", () => {
  for (const name of ["Ada Lovelace", "José Ñandú", "李小龙", "O’Brien-Smith", "آدا", "👩‍🚀", "iPhone 15.2 (work)"])
    expect(showable(name)).toBe(name);
});

test("a value that is missing is a fault, not a gap in a mail", async () => {
  const template = await readMailTemplate("reset-password");
  expect(() => renderMailTemplate(template, { greeting: "Hello," })).toThrow("asks for link");
  expect(readMailTemplate("../workspace/SOUL")).rejects.toThrow("no such mail template");
});

test("times are in the person's own zone, in UTC where the zone is not known here", () => {
  const at = "2026-11-24T23:30:00.000Z";
  expect(renderTime(at, "Asia/Tokyo")).toBe("25 November 2026 at 08:30 (Asia/Tokyo)");
  expect(renderTime(at, "posix/Factory")).toBe("24 November 2026 at 23:30 (UTC)");
});

test("links lead into the app, however its address ends", () => {
  expect(
    ["https://a.example", "https://a.example/app/", "reef://", "reef://open"].map((url) => appLink(url, "x")),
  ).toEqual(["https://a.example/x", "https://a.example/app/x", "reef://x", "reef://open/x"]);
});
