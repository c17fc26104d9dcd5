import { mkdir, rename, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { OutgoingMail } from "./mailer.ts";

/** A folder that takes mails where no server does: two files each, to be read as they are. Names sort by time. */
export function createMailFolder(dir: string) {
  const put = async (name: string, text: string) => {
    const draft = join(dir, `.${name}.draft`);
    await writeFile(draft, text, { mode: 0o600 });
    await rename(draft, join(dir, name));
  };
  return {
    /** Writes `<id>-<template>.txt` and `.html`; the same mail again replaces itself. */
    async write(mail: OutgoingMail, from: string): Promise<void> {
      await mkdir(dir, { recursive: true, mode: 0o700 });
      const head = [`From: ${from}`, `To: ${mail.recipient}`, `Date: ${mail.createdAt.toUTCString()}`];
      const name = `${mail.id}-${mail.template}`;
      await put(`${name}.html`, mail.html);
      await put(`${name}.txt`, `${[...head, `Subject: ${mail.subject}`].join("\n")}\n\n${mail.text}`);
    },
  };
}
