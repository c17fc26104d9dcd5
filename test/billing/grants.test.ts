import { afterAll, beforeAll, expect, test } from "bun:test";
import { createOperator } from "../../src/services/operators.ts";
import { call, makeAssistant, makeUser } from "../factories.ts";
import { until } from "../harness.ts";
import { auditOf, makeSubscriber, mailsOf, openShop, planOf, rowOf, type Shop } from "./shop.ts";

let shop: Shop;
let token: string;
beforeAll(async () => {
  shop = await openShop();
  token = (await createOperator(shop.reef.deps, { osUser: "tester" }, "grants"))!;
});
afterAll(() => shop.stop());

const grant = (id: string, body: object) => call(shop.reef.url, "POST", `/api/admin/users/${id}/grant`, body, token);
const endGrant = (id: string) => call(shop.reef.url, "DELETE", `/api/admin/users/${id}/grant`, undefined, token);

test("a gift counts at once, beside what is paid; the larger one counts; it is audited", async () => {
  const { sql, stripe } = shop;
  const { user, subscription } = await makeSubscriber(shop, "pro monthly");
  const answer = await grant(user.id, { plan: "premium" });
  expect([answer.status, answer.body.user.plan]).toEqual([200, "premium"]);
  expect(answer.body.entitlements).toEqual([
    { source: "grant", plan: "premium", status: "active", current_period_end: null },
    { source: "stripe", plan: "pro", status: "active", current_period_end: expect.any(String) },
  ]);
  expect(await auditOf(sql, user.id, "subscription.granted")).toMatchObject([{ plan: "premium", until: "" }]);
  stripe.cancelNow(subscription);
  await shop.settled();
  expect(await planOf(user)).toBe("premium");
  expect((await endGrant(user.id)).body.user.plan).toBe("free");
  expect((await endGrant(user.id)).status).toBe(200);
  expect((await auditOf(sql, user.id, "subscription.grant_ended")).length).toBe(1);
  expect((await mailsOf(sql, user.id)).map(({ params }) => params["to_plan"])).toEqual(["pro", "premium", "free"]);
});

test("a gift ends by its date: the limits at that moment, assistants and mail a little later", async () => {
  const { sql } = shop;
  const user = await makeUser(shop.reef);
  const until_ = new Date(Date.now() + 3_600_000).toISOString();
  expect((await grant(user.id, { plan: "pro", until: until_ })).status).toBe(200);
  for (let n = 0; n < 3; n++) await makeAssistant(user);
  await sql`update subscriptions set current_period_end = now() where user_id = ${user.id}`;
  expect(await planOf(user)).toBe("free");
  await until("it is applied", async () => (await mailsOf(sql, user.id)).length === 2);
  expect(await rowOf(sql, user.id, "grant")).toMatchObject({ status: "canceled" });
  const { body } = await user.call("GET", "/api/assistants");
  expect(body.filter(({ status }: { status: string }) => status === "active").length).toBe(1);
});

test("what can't be given is refused: a plan that there is not, free, an end that is over, somebody who is leaving", async () => {
  const user = await makeUser(shop.reef);
  for (const body of [
    { plan: "gold" },
    { plan: "free" },
    { plan: "pro", until: "2020-01-01T00:00:00Z" },
    { plan: "pro", until: "soon" },
    {},
  ]) {
    const answer = await grant(user.id, body);
    expect([answer.status, answer.body.code]).toEqual([400, "validation_failed"]);
  }
  expect((await grant(crypto.randomUUID(), { plan: "pro" })).status).toBe(404);
  await shop.sql`update users set status = 'deleting' where id = ${user.id}`;
  expect((await grant(user.id, { plan: "pro" })).body.code).toBe("account_deleting");
  expect(await rowOf(shop.sql, user.id, "grant")).toBeNull();
  await shop.sql`update users set status = 'active' where id = ${user.id}`;
});
