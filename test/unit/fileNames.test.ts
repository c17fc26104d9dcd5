import { expect, test } from "bun:test";
import { createFileNames, toFileName } from "../../src/lib/fileNames.ts";

test("a hostile name becomes one harmless segment", () => {
  for (const [given, name] of [
    ["..", "_"],
    [".", "_"],
    ["...", "_"],
    ["", "_"],
    ["  \t\n ", "_"],
    ["../../etc/passwd", ".._.._etc_passwd"],
    ["..\\..\\windows", ".._.._windows"],
    ["/etc/passwd", "_etc_passwd"],
    ["C:\\a", "C__a"],
    ["a\u0000b", "ab"],
    ["gpj.\u202eexe", "gpj.exe"],
    ["con", "_con"],
    ["NUL.txt", "_NUL.txt"],
    ["console", "console"],
    ["end. . ", "end"],
    ["👩‍👩‍👧 عائلة", "👩‍👩‍👧 عائلة"],
    ["lone \ud800 half", "lone \ufffd half"],
    ["Zu\u0308rich", "Zürich"],
    ["line\nbreak", "linebreak"],
  ] as const)
    expect([given, toFileName(given, "_")]).toEqual([given, name]);
});

test("a long name is cut at a character, and keeps its extension", () => {
  for (const letter of ["a", "é", "語", "🐚", "👩‍👩‍👧"]) {
    const name = toFileName(`${letter.repeat(300)}.md`, "_");
    expect(Buffer.byteLength(name)).toBeWithin(100, 121);
    expect(name.endsWith(".md")).toBe(true);
    expect(name.isWellFormed()).toBe(true);
  }
  expect(Buffer.byteLength(toFileName(".".repeat(50) + "x".repeat(400), "_"))).toBe(120);
});

test("names in one folder differ also where A and a are one, and stay the same for the same original", () => {
  const names = createFileNames();
  const given = ["a?.md", "a*.md", "A_.md", "a_.md", "..", ".", "straße", "STRASSE"].map((name) =>
    names.nameOf("f", name),
  );
  expect(given).toEqual(["a_.md", "a_ (2).md", "A_ (3).md", "a_ (4).md", "_", "_ (2)", "straße", "STRASSE (2)"]);
  expect(names.nameOf("f", "a*.md")).toBe("a_ (2).md");
  expect(names.nameOf("g", "a*.md")).toBe("a_.md");
});

test("of thousands of random names none leads out of its folder, and all differ", () => {
  const pieces = [
    "..",
    "/",
    "\\",
    "\u0000",
    ".",
    " ",
    "a",
    "A",
    ":",
    "\u202e",
    "🐚",
    "ü",
    "\ud800",
    "con",
    "\ufeff",
    "x".repeat(200),
  ];
  const names = createFileNames();
  const originals = new Set<string>();
  let state = 7;
  const draw = () => (state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0);
  while (originals.size < 3_000)
    originals.add(
      Array.from({ length: 1 + ((draw() >>> 16) % 6) }, () => pieces[(draw() >>> 16) % pieces.length]).join(""),
    );
  const given = [...originals].map((original) => names.nameOf("f", original));
  expect(new Set(given.map((name) => name.toLowerCase())).size).toBe(given.length);
  for (const name of given) {
    expect(name).not.toMatch(/^\.*$|[/\\:\p{Cc}]/u);
    expect(Buffer.byteLength(name)).toBeLessThanOrEqual(130);
  }
});
