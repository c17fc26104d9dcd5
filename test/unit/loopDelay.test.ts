import { expect, test } from "bun:test";
import { createLoopDelay } from "../../src/lib/loopDelay.ts";
import { until } from "../harness.ts";

test("a loop that stood still is seen, by everybody who asks", async () => {
  const delay = createLoopDelay();
  try {
    const standStill = () => {
      const end = performance.now() + 150;
      while (performance.now() < end);
    };
    await until("it is seen", async () => {
      await Bun.sleep(50);
      standStill();
      await Bun.sleep(50);
      return delay.read().maxMs >= 100;
    });
    expect(delay.read().maxMs).toBeGreaterThanOrEqual(100);
    expect(delay.read().meanMs).toBeLessThanOrEqual(delay.read().maxMs);
  } finally {
    delay.close();
  }
});
