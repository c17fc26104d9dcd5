import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { MailTemplate } from "../lib/mailTemplate.ts";

const FOLDER = join(import.meta.dir, "../../templates/mail");

/** Reads a mail's template from `templates/mail/`. Rejects when there is none of that name. */
export async function readMailTemplate(name: string): Promise<MailTemplate> {
  if (!/^[a-z-]+$/.test(name)) throw new Error("there is no such mail template");
  const read = (file: string) => readFile(join(FOLDER, file), "utf8");
  const [text, html, layout] = await Promise.all([read(`${name}.txt`), read(`${name}.html`), read("layout.html")]);
  return { text, html, layout };
}
