import { randomBytes } from "node:crypto";
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { startFakeStripe, type FakeStripe, type StripeSnapshot } from "../../test/fakes/stripe.ts";
import { freePort, lastLines, present, rotateLog, spawnChild, StartError, type Log } from "./process.ts";

/** A shop that looks like Stripe and takes play money, for whoever tries Reef out without a key. */
export interface PlayShop {
  url: string;
  /** What makes the application use it. */
  env: { STRIPE_SECRET_KEY: string; STRIPE_API_BASE: string; STRIPE_WEBHOOK_SECRETS: string };
  stop(): Promise<void>;
}

/** What is kept over restarts: the same port, so that open pages stay what they are. */
interface Kept {
  port: number;
  secretKey: string;
  webhookSecret: string;
  snapshot?: StripeSnapshot;
}

const SAVE_MS = 1_000;

/** Starts the shop that `file` remembers, or a new one. Its events go to `deliverTo`. Throws StartError. */
export async function startPlayShop(options: { file: string; deliverTo: string }): Promise<PlayShop> {
  const { file } = options;
  const kept = readKept(file);
  const shop = await openShop(kept, options.deliverTo);
  const { secretKey, webhookSecret } = kept;
  let written = "";
  const save = () => {
    const port = Number(new URL(shop.apiBase).port);
    const text = JSON.stringify({ port, secretKey, webhookSecret, snapshot: shop.snapshot() } satisfies Kept);
    // The clock goes on by itself; what it did is in the rest.
    const content = text.replace(/"now":\d+/, "");
    if (content === written) return;
    writeFileSync(`${file}.new`, text, { mode: 0o600, flush: true });
    renameSync(`${file}.new`, file);
    written = content;
  };
  save();
  const saving = setInterval(save, SAVE_MS);
  return {
    url: shop.url,
    env: { STRIPE_SECRET_KEY: secretKey, STRIPE_API_BASE: shop.apiBase, STRIPE_WEBHOOK_SECRETS: webhookSecret },
    async stop() {
      clearInterval(saving);
      save();
      await shop.close();
    },
  };
}

async function openShop(kept: Kept, deliverTo: string): Promise<FakeStripe> {
  const { port, secretKey, webhookSecret, snapshot } = kept;
  const now = Math.floor(Date.now() / 1000);
  const open = (on: number) =>
    startFakeStripe({
      port: on,
      secretKey,
      webhookSecrets: [webhookSecret],
      deliverTo,
      running: true,
      // Time went on while the shop was closed, unless it is ahead already.
      ...(snapshot ? { snapshot: { ...snapshot, now: Math.max(now, snapshot.now) } } : {}),
    });
  try {
    return await open(port);
  } catch (error) {
    // Somebody else has the port now.
    if ((error as { code?: unknown }).code === "EADDRINUSE") return open(freePort());
    throw error;
  }
}

function readKept(file: string): Kept {
  const secret = (prefix: string) => prefix + randomBytes(18).toString("hex");
  if (!existsSync(file)) return { port: freePort(), secretKey: secret("sk_test_"), webhookSecret: secret("whsec_") };
  try {
    const kept = JSON.parse(readFileSync(file, "utf8")) as Kept | null;
    if (kept?.secretKey && kept.webhookSecret && Number.isInteger(kept.port)) return kept;
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
  }
  throw new StartError(
    `${file} is damaged: restore it, or delete the data folder. A new play shop would not know who has bought something.`,
  );
}

/** Puts the plans on the shop's shelf, as an operator does with a real key. Says what went wrong, and goes on. */
export async function stockPlayShop(app: Record<string, string | undefined>, logFile: string, say: Log): Promise<void> {
  rotateLog(logFile);
  const job = spawnChild({
    command: [process.execPath, "--no-env-file", "src/jobs/admin.ts", "stripe", "sync-prices"],
    env: present(app),
    deathSignal: "KILL",
    logFile,
  });
  const timer = setTimeout(() => job.kill("SIGKILL"), 60_000);
  const code = await job.exited;
  clearTimeout(timer);
  if (code !== 0) say(`the play shop has nothing to sell (see ${logFile}): ${lastLines(logFile, 1)}`);
}
