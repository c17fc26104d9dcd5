import { expect, test } from "bun:test";
import { InFlight } from "../../src/lib/inFlight.ts";
import { newId } from "../../src/lib/ids.ts";
import { createLog } from "../../src/lib/log.ts";
import { AppError } from "../../src/lib/errors.ts";
import { createMemoryBudget } from "../../src/lib/memoryBudget.ts";
import type { VoiceFrame } from "../../src/protocol/chat.ts";
import { VoiceSlot, type Voice } from "../../src/routes/voiceSlot.ts";
import { until } from "../harness.ts";

const announce = (): VoiceFrame => ({ type: "voice", client_id: newId() });
const whole = (bytes: number): VoiceFrame => ({ ...announce(), audio: Buffer.alloc(bytes, 1).toString("base64") });
const codeOf = (answer: unknown) => (answer instanceof AppError ? answer.code : answer);

function createSlots(limitBytes: number, ...users: string[]) {
  const budget = createMemoryBudget(limitBytes);
  const clock = { ms: 0, now: () => clock.ms, setTimeout: () => ({}), clearTimeout: () => undefined };
  return { clock, slots: users.map((user) => new VoiceSlot(budget, user, clock)) };
}

test("sound that comes later than a minute after its announcement is nobody's", () => {
  const { clock, slots } = createSlots(1000, "one");
  const [slot] = slots as [VoiceSlot];
  slot.offer(announce());
  clock.ms = 60_000;
  expect(slot.receive(Buffer.alloc(1))).toMatchObject({ voice: { bytes: Buffer.alloc(1) } });
  slot.done();
  slot.offer(announce());
  clock.ms = 120_001;
  expect(slot.receive(Buffer.alloc(1))).toBe("unexpected");
});

test("all sockets together hold no more than the budget, one person's half of it; what was listened to makes room", () => {
  const { slots } = createSlots(1000, "one", "one", "two", "three");
  const [first, another, second, third] = slots as [VoiceSlot, VoiceSlot, VoiceSlot, VoiceSlot];
  expect((first.offer(whole(400)) as Voice).bytes.length).toBe(400);
  expect(codeOf(another.offer(whole(101)))).toBe("service_unavailable");
  another.offer(announce());
  expect(codeOf((another.receive(Buffer.alloc(101)) as { voice: unknown }).voice)).toBe("service_unavailable");
  expect((second.offer(whole(500)) as Voice).bytes.length).toBe(500);
  expect(codeOf(third.offer(whole(101)))).toBe("service_unavailable");
  expect((third.offer(whole(100)) as Voice).bytes.length).toBe(100);
  first.done();
  expect((another.offer(whole(400)) as Voice).bytes.length).toBe(400);
  third.done();
  second.done();
  expect((second.offer(whole(500)) as Voice).bytes.length).toBe(500);
});

test("work in flight: its end waits for it, aborts what is left, and logs what failed before", async () => {
  const lines: string[] = [];
  const inFlight = new InFlight(createLog("info", { write: (line) => void lines.push(line) }));
  const gate = Promise.withResolvers<void>();
  const done: string[] = [];
  inFlight.add("good work", async () => {
    await gate.promise;
    done.push("first");
    inFlight.add("what it left", async () => void done.push("second"));
  });
  inFlight.add("bad work", async () => {
    throw new Error("broken");
  });
  await until("it is logged", () => lines.some((line) => line.includes("bad work") && line.includes("broken")));
  const stopping = inFlight.stop(10_000);
  gate.resolve();
  await stopping;
  expect(done).toEqual(["first", "second"]);
  let aborted = false;
  const endless = new InFlight(createLog("silent"));
  endless.add("endless work", async () => {
    await new Promise((resolve) => endless.signal.addEventListener("abort", resolve));
    aborted = true;
  });
  await endless.stop(1);
  expect(aborted).toBe(true);
});
