import { afterEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pid } from "node:process";
import { startPlayShop, stockPlayShop, type PlayShop } from "../../scripts/services/playShop.ts";
import { StartError } from "../../scripts/services/process.ts";
import { checkout, subscription } from "../billing/storefront.ts";
import { makeUser, type TestUser } from "../factories.ts";
import { startTestReef, until, type TestReef } from "../harness.ts";

const dir = mkdtempSync(join(tmpdir(), `reef-test-${pid}-`));
const file = join(dir, "playShop.json");
const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
  rmSync(file, { force: true });
});

const open = (deliverTo = "http://127.0.0.1:1/") => startPlayShop({ file, deliverTo });

async function openReef(shop: PlayShop): Promise<TestReef> {
  const reef = await startTestReef({ ...shop.env, APP_URL: "http://127.0.0.1:1" });
  closers.push(() => reef.stop());
  return reef;
}

const press = (url: string, form: Record<string, string>) =>
  fetch(url, { method: "POST", body: new URLSearchParams(form), redirect: "manual" });
const planOf = async (user: TestUser) => (await user.call("GET", "/api/user/profile")).body.plan;

test("clicked through: bought, heard of by webhook, changed; after a restart it is all still there, at the same address", async () => {
  // The shop is there before its Reef: what it sends is passed on.
  let target = "";
  const relay = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch: async (request) =>
      fetch(`${target}/api/webhooks/stripe`, {
        method: "POST",
        headers: { "stripe-signature": request.headers.get("stripe-signature") ?? "" },
        body: await request.text(),
      }),
  });
  closers.push(() => relay.stop(true));
  const deliverTo = `http://127.0.0.1:${relay.port}/`;
  const shop = await open(deliverTo);
  const reef = await openReef(shop);
  target = reef.url;
  const said: string[] = [];
  await stockPlayShop({ ...reef.env, PATH: process.env["PATH"] }, join(dir, "jobs.log"), (line) => said.push(line));
  expect(said).toEqual([]);
  const user = await makeUser(reef);
  const { checkout_url: url } = (await checkout(user, "pro")).body;
  expect(url).toStartWith(shop.url);
  expect(await (await fetch(url)).text()).toContain("Play shop – no real money");
  const paid = await press(url, { action: "pay" });
  expect([paid.status, paid.headers.get("location")]).toEqual([303, "http://127.0.0.1:1/subscription?checkout=done"]);
  await until("the webhook has told it", async () => (await planOf(user)) === "pro", 20_000);
  const change = (await checkout(user, "premium")).body.checkout_url;
  const fields = (html: string) =>
    Object.fromEntries([...html.matchAll(/name="(\w+)" value="([^"]*)"/g)].map((m) => [m[1]!, m[2]!]));
  const html = await (await fetch(change)).text();
  expect(html).toContain("Confirm your change");
  await press(change, fields(html));
  await until("the webhook has told it", async () => (await planOf(user)) === "premium", 20_000);

  await shop.stop();
  const again = await open(deliverTo);
  closers.push(() => again.stop());
  expect([again.url, again.env]).toEqual([shop.url, shop.env]);
  await reef.sql`update stripe_customers set asked_at = null`;
  expect(await subscription(user)).toMatchObject({ plan: "premium", status: "active" });
  expect((await checkout(user, "premium")).body.code).toBe("already_subscribed");
  expect((await press(change, fields(html))).status).toBe(303);
  expect(statSync(file).mode & 0o777).toBe(0o600);
});

test("a port that somebody else has by now: another one; a damaged file: a sentence that says what to do", async () => {
  const shop = await open();
  const { port } = new URL(shop.url);
  await shop.stop();
  const other = Bun.listen({ hostname: "127.0.0.1", port: Number(port), socket: { data() {} } });
  closers.push(() => other.stop(true));
  const moved = await open();
  expect([moved.url === shop.url, moved.env.STRIPE_SECRET_KEY]).toEqual([false, shop.env.STRIPE_SECRET_KEY]);
  await moved.stop();
  for (const text of ["{", "{}"]) {
    writeFileSync(file, text);
    const failed = await open().catch((error: unknown) => error);
    expect([failed instanceof StartError, (failed as Error).message.includes(file)]).toEqual([true, true]);
  }
});

test("what is done there is written down by itself, not only at its end", async () => {
  const shop = await open();
  const reef = await openReef(shop);
  await stockPlayShop({ ...reef.env, PATH: process.env["PATH"] }, join(dir, "jobs.log"), () => undefined);
  const user = await makeUser(reef);
  const { checkout_url: url } = (await checkout(user, "pro")).body;
  const id = url.split("/").at(-1);
  await until("it is kept", async () => (await Bun.file(file).text()).includes(id));
  await shop.stop();
});
