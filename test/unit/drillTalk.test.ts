import { expect, test } from "bun:test";
import { isShown } from "../../scripts/services/drillTalk.ts";

const prompt = (note: string) => `rules\n## /srv/agent/MEMORY.md\n\n${note}\n\n## /srv/agent/USER.md\n\nAda\n`;

test("a restored assistant's memory is found in its prompt, however long it is and whatever is in it", () => {
  const long = Array.from({ length: 3_000 }, (_, n) => `${n}: she keeps bees`).join("\n");
  // As 2026.9.3 cuts it.
  const cut = `${long.slice(0, 14_900)}\n\n[...truncated, read MEMORY.md for full content...]\n${long.slice(-4_900)}`;
  expect(isShown(prompt(cut), `${long}\n`)).toBe(true);
  const strange = "bees\n## USER.md\nwasps\n<!-- openclaw: -->";
  expect(isShown(prompt(strange), strange)).toBe(true);
  expect(isShown(prompt("bees"), "bees\n")).toBe(true);
  expect(isShown(prompt("wasps"), "bees")).toBe(false);
  expect(isShown(prompt("wasps"), long)).toBe(false);
  expect(isShown(prompt("[MISSING]"), "\n")).toBe(null);
});
