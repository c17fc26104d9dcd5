import { expect, test } from "bun:test";
import { makeAssistant, makeUser } from "../factories.ts";
import { startTestReef, until } from "../harness.ts";

test("stopping does not ask a gateway once more that has not taken its configuration", async () => {
  const reef = await startTestReef();
  let asked = 0;
  reef.deps.gateway.listAgents = async () => (asked++, []);
  const readConfigStatus = reef.deps.gateway.readConfigStatus.bind(reef.deps.gateway);
  let read = 0;
  // The first is for what was applied before; it is the one at the end that must not be waited for.
  reef.deps.gateway.readConfigStatus = () => (read++ === 0 ? readConfigStatus() : new Promise(() => undefined));
  await makeAssistant(await makeUser(reef));
  await until("the reconciler waits for the gateway", () => asked > 0);
  const began = performance.now();
  await reef.stop();
  expect(performance.now() - began).toBeLessThan(5_000);
});

test("a loop that hangs does not keep the process from closing", async () => {
  const reef = await startTestReef();
  let asked = 0;
  reef.deps.gateway.listAgents = () => (asked++, new Promise(() => undefined));
  await makeAssistant(await makeUser(reef));
  await until("the reconciler hangs", () => asked > 0);
  const began = performance.now();
  await reef.stop();
  expect(performance.now() - began).toBeWithin(8_000, 12_000);
  expect(reef.logs.join("")).toContain("did not stop in time");
});
