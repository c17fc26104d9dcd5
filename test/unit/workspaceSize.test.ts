import { afterEach, beforeEach, expect, test } from "bun:test";
import {
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { holdSize } from "../../src/clients/workspaceSize.ts";

const NOTES = ["AGENTS.md", "IDENTITY.md", "MEMORY.md", "SOUL.md", "USER.md"];
let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "reef-size-"));
  for (const name of NOTES) put(name, 1_000, 1);
});
afterEach(() => rmSync(folder, { recursive: true }));

function put(name: string, bytes: number, changedSecond: number): void {
  const path = join(folder, name);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, "x".repeat(bytes));
  utimesSync(path, changedSecond, changedSecond);
}
const found = () => (readdirSync(folder, { recursive: true }) as string[]).toSorted();
const total = () => found().reduce((sum, name) => sum + statSync(join(folder, name)).size, 0);

test("what is within the limits stays as it is", async () => {
  put("notes/trip.md", 50_000, 5);
  expect(await holdSize(folder)).toBe(0);
  expect(found()).toEqual([...NOTES, "notes", "notes/trip.md"]);
});

test("over the limit the newest file goes, older ones and the notes stay", async () => {
  for (let i = 1; i <= 5; i++) put(`f${i}.md`, 240_000, i);
  expect(await holdSize(folder)).toBe(1);
  expect(found()).toEqual([...NOTES, "f1.md", "f2.md", "f3.md", "f4.md"]);
});

test("files that only bear the name of a note are files like any other", async () => {
  for (let i = 1; i <= 5; i++) put(`n${i}/MEMORY.md`, 250_000, i);
  put("MEMORY.md", 90_000, 9);
  await holdSize(folder);
  expect(NOTES.every((name) => found().includes(name))).toBe(true);
  expect(found()).not.toContain("n5");
  expect(total()).toBeLessThan(1_000_000);
});

test("notes that are too long lose their end, even the newest", async () => {
  for (const name of NOTES) put(name, 900_000, 50);
  expect(await holdSize(folder)).toBe(5);
  expect(found()).toEqual(NOTES);
  expect(total()).toBe(500_000);
});

test("a deep tree goes at once, and what lies beside it stays", async () => {
  put("mine.md", 10, 99);
  let path = folder;
  for (let i = 0; i < 400; i++) mkdirSync((path = join(path, "d")));
  writeFileSync(join(path, "x.md"), "x");
  await holdSize(folder);
  expect(found().filter((name) => !name.startsWith("d"))).toEqual([...NOTES, "mine.md"]);
  expect(found().length).toBeLessThan(20);
});

test("a thousand empty folders go", async () => {
  for (let i = 0; i < 1_500; i++) mkdirSync(join(folder, `e${i}`));
  await holdSize(folder);
  expect(found().length).toBeLessThanOrEqual(505);
  expect(NOTES.every((name) => found().includes(name))).toBe(true);
});

test("links, under whatever name, go", async () => {
  const outside = mkdtempSync(join(tmpdir(), "reef-out-"));
  writeFileSync(join(outside, "secret"), "s");
  symlinkSync(outside, join(folder, "dir"));
  symlinkSync(join(outside, "secret"), join(folder, "soft.md"));
  linkSync(join(outside, "secret"), join(folder, "hard.md"));
  expect(await holdSize(folder)).toBe(3);
  expect(found()).toEqual(NOTES);
  expect(readdirSync(outside)).toEqual(["secret"]);
  rmSync(outside, { recursive: true });
});
