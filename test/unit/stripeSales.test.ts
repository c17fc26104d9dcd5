import { expect, test } from "bun:test";
import { openStripe } from "../../src/clients/stripe.ts";
import { createStripeSales } from "../../src/clients/stripeSales.ts";

/** A Stripe that keeps failures under their keys, as Stripe does for a day. */
function startKeeper(failures: number) {
  const keys: string[] = [];
  const server = Bun.serve({
    port: 0,
    hostname: "127.0.0.1",
    fetch(request) {
      const key = request.headers.get("idempotency-key") ?? "";
      const replayed = keys.includes(key);
      const known = [...new Set(keys)];
      keys.push(key);
      if ((replayed ? known.indexOf(key) : known.length) < failures) {
        const headers: Record<string, string> = replayed ? { "idempotent-replayed": "true" } : {};
        return Response.json({ error: { type: "api_error", message: "down" } }, { status: 500, headers });
      }
      return Response.json({ id: "cus_1", object: "customer" });
    },
  });
  const stripe = openStripe({ STRIPE_SECRET_KEY: "sk_test_x", STRIPE_API_BASE: `http://127.0.0.1:${server.port}` })!;
  return { keys, calls: createStripeSales(stripe).within(() => 5_000), stop: () => server.stop(true) };
}

test("a failure that Stripe repeats under its key does not last: the next try goes on to another key, in an order", async () => {
  const keeper = startKeeper(2);
  const who = { email: "a@example.org", userId: "u", replaces: null };
  const make = () => keeper.calls.createCustomer(who).catch(() => "failed");
  expect([await make(), await make(), await make()]).toEqual(["failed", "failed", "cus_1"]);
  expect(keeper.keys).toEqual([
    "customer:u",
    "customer:u",
    "customer:u:1",
    "customer:u",
    "customer:u:1",
    "customer:u:2",
  ]);
  await keeper.stop();
});

test("the customer in place of a deleted one is another request than the first", async () => {
  const keeper = startKeeper(0);
  await keeper.calls.createCustomer({ email: "a@example.org", userId: "u", replaces: null });
  await keeper.calls.createCustomer({ email: "a@example.org", userId: "u", replaces: "cus_0" });
  expect(keeper.keys).toEqual(["customer:u", "customer:u:cus_0"]);
  await keeper.stop();
});

test("no time left: nothing is asked", async () => {
  const keeper = startKeeper(0);
  const stripe = openStripe({ STRIPE_SECRET_KEY: "sk_test_x", STRIPE_API_BASE: "http://127.0.0.1:1" })!;
  const late = createStripeSales(stripe).within(() => {
    throw new Error("too late");
  });
  expect(await late.listOpenCheckouts("cus_1").catch((error: Error) => error.message)).toBe("too late");
  expect(keeper.keys).toEqual([]);
  await keeper.stop();
});
