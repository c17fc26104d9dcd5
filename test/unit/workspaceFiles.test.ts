import { afterEach, beforeEach, expect, test } from "bun:test";
import { execFileSync } from "node:child_process";
import {
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { readWorkspace, type WorkspaceFile } from "../../src/clients/workspaceFiles.ts";

let base: string;
let folder: string;
beforeEach(() => {
  base = mkdtempSync(join(tmpdir(), "reef-files-"));
  folder = join(base, "agent_a");
  put("SOUL.md", "kind");
  put("../agent_b/MEMORY.md", "the neighbour's secret");
});
afterEach(() => rmSync(base, { recursive: true }));

function put(name: string, content: string): string {
  const path = join(folder, name);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, content);
  return path;
}
const read = () => Array.fromAsync(readWorkspace(folder));
const show = (files: WorkspaceFile[]) =>
  Object.fromEntries(files.map((file) => [file.path.join("/"), file.leftOut ?? file.content.toString()]));
const openFiles = () => readdirSync("/proc/self/fd").length;

test("every file with its folder, empty ones too; a folder that is not there has none", async () => {
  put("notes/2026/trip.md", "by train");
  put("notes/empty", "");
  put(".hidden", "h");
  expect(show(await read())).toEqual({
    ".hidden": "h",
    "SOUL.md": "kind",
    "notes/2026/trip.md": "by train",
    "notes/empty": "",
  });
  expect(await Array.fromAsync(readWorkspace(join(base, "agent_c")))).toEqual([]);
});

test("links to files, folders and itself, second names, pipes: left out, and said so; nothing is followed", async () => {
  symlinkSync("/etc/passwd", join(folder, "passwd"));
  symlinkSync("../agent_b/MEMORY.md", join(folder, "relative"));
  symlinkSync(join(base, "agent_b"), join(folder, "neighbour"));
  symlinkSync(".", join(folder, "loop"));
  symlinkSync("nowhere", join(folder, "dangling"));
  linkSync(join(base, "agent_b/MEMORY.md"), join(folder, "hard"));
  execFileSync("mkfifo", [join(folder, "pipe")]);
  const found = show(await read());
  for (const name of ["passwd", "relative", "neighbour", "loop", "dangling", "pipe"])
    expect(found[name]).toBe("not a file");
  expect(found["hard"]).toBe("has a second name elsewhere");
  expect(found["SOUL.md"]).toBe("kind");
  expect(Object.keys(found).length).toBe(8);
});

test("a folder of the assistant's that is a link itself is refused", async () => {
  rmSync(folder, { recursive: true });
  symlinkSync(join(base, "agent_b"), folder);
  expect(await read()).toEqual([{ path: [], leftOut: "not a folder" }]);
});

test("a folder that becomes a link while we read never shows what it leads to", async () => {
  put("inner/aaa.md", "mine");
  put("inner/MEMORY.md", "mine, too");
  const seen: WorkspaceFile[] = [];
  for await (const file of readWorkspace(folder)) {
    seen.push(file);
    if (file.path.join("/") !== "inner/MEMORY.md" || existsSync(join(folder, "moved"))) continue;
    renameSync(join(folder, "inner"), join(folder, "moved"));
    symlinkSync(join(base, "agent_b"), join(folder, "inner"));
  }
  // And all the while.
  let on = true;
  const swap = (async () => {
    while (on) {
      unlinkSync(join(folder, "inner"));
      mkdirSync(join(folder, "inner"));
      writeFileSync(join(folder, "inner", "MEMORY.md"), "mine");
      await Bun.sleep(0);
      rmSync(join(folder, "inner"), { recursive: true });
      symlinkSync(join(base, "agent_b"), join(folder, "inner"));
      await Bun.sleep(0);
    }
  })();
  for (let i = 0; i < 60; i++) seen.push(...(await read()));
  on = false;
  await swap;
  expect(seen.length).toBeGreaterThan(120);
  expect(JSON.stringify(seen.map((file) => file.leftOut ?? file.content.toString()))).not.toContain("neighbour");
});

test("too large, too deep, too many: left out, and said so", async () => {
  truncateSync(put("large", ""), 1_000_001);
  truncateSync(put("fits", ""), 1_000_000);
  put(`${"d/".repeat(16)}deep`, "deep");
  put(`${"e/".repeat(15)}just`, "just");
  let found = show(await read());
  expect(found["large"]).toBe("larger than 1000000 bytes");
  expect(found["fits"]?.length).toBe(1_000_000);
  expect(found["d/".repeat(16).slice(0, -1)]).toBe("too deep");
  expect(found[`${"e/".repeat(15)}just`]).toBe("just");
  for (let i = 0; i < 2_100; i++) put(`many/${i}`, "");
  found = show(await read());
  expect(found["many"]).toBe("all after 2000 files and folders");
  for (let i = 0; i < 25; i++) truncateSync(put(`big/${i}`, ""), 1_000_000);
  expect(Object.values(show(await read())).filter((text) => text.startsWith("all files together")).length).toBe(7);
});

test("names that are no text are read; every file is closed, also when the reader stops early", async () => {
  writeFileSync(Buffer.concat([Buffer.from(`${folder}/`), Buffer.from([0x62, 0xff])]), "bytes");
  for (let i = 0; i < 20; i++) put(`sub/dir/${i}`, "x");
  const before = openFiles();
  expect(show(await read())["b\ufffd 62ff"]).toBe("bytes");
  for (let i = 0; i < 50; i++) for await (const file of readWorkspace(folder)) if (file.path.length === 3) break;
  expect(openFiles()).toBeLessThanOrEqual(before);
});
