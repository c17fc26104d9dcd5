import { mkdirSync, watch } from "node:fs";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Log } from "./process.ts";

/**
 * Says of each mail that is written into a folder what it is about and where its link leads: whoever tries Reef out has
 * no mailbox. To the terminal only; a log would keep what opens an account.
 */
export function announceMails(dir: string, say: Log): void {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const announced = new Set<string>();
  watch(dir, (_event, name) => {
    if (!name?.endsWith(".txt") || name.startsWith(".") || announced.has(name)) return;
    announced.add(name);
    readFile(join(dir, name), "utf8")
      .then((text) => say(renderLine(text)))
      .catch(() => say(`a mail was written: ${join(dir, name)}`));
  });
}

function renderLine(text: string): string {
  const field = (name: string) => new RegExp(`^${name}: (.*)$`, "m").exec(text)?.[1] ?? "";
  const link = /^[a-z][a-z0-9+.-]*:\/\/\S+$/m.exec(text)?.[0];
  return `mail to ${field("To")}: ${field("Subject")}${link ? `, ${link}` : ""}`;
}
