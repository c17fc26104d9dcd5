import { existsSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { environmentSchema } from "../../src/config.ts";

const fileIn = (dataDir: string) => join(dataDir, "running.json");

/** What costs money stays out of files: no other command calls a model, and one that deals with Stripe is given its key. */
const KEPT_BACK = ["OPENAI_API_KEY", "STRIPE_SECRET_KEY"];

/**
 * Tells other commands of this user how to reach what runs on a data folder (ports and passwords are made anew at each
 * start). It is there while we run; after a SIGKILL it names what no longer answers. `shop`: the play shop's, whose key is
 * worth nothing.
 */
export function writeRunningFile(
  dataDir: string,
  app: Record<string, string | undefined>,
  shop: Record<string, string> = {},
): void {
  const settings = Object.fromEntries(
    Object.keys(environmentSchema.shape).flatMap((name) =>
      app[name] && !KEPT_BACK.includes(name) ? [[name, app[name]]] : [],
    ),
  );
  const file = fileIn(dataDir);
  writeFileSync(`${file}.new`, `${JSON.stringify({ ...settings, ...shop }, null, 2)}\n`, { mode: 0o600 });
  renameSync(`${file}.new`, file);
  process.on("exit", () => rmSync(file, { force: true }));
}

/** The settings of what runs on a data folder; none when nothing does. */
export function readRunningFile(dataDir: string): Record<string, string> {
  const file = fileIn(dataDir);
  return existsSync(file) ? (JSON.parse(readFileSync(file, "utf8")) as Record<string, string>) : {};
}
