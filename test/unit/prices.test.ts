import { expect, test } from "bun:test";
import { estimateCost, LIST_PRICES, priceTable, renderUsd } from "../../src/lib/prices.ts";

test("what speech costs, in micro-USD, rounded up; a model without a price is not known", () => {
  const cost = (model: string, amount: { seconds?: number; characters?: number }) =>
    estimateCost(LIST_PRICES, model, amount);
  expect(cost("whisper-1", { seconds: 60 })).toBe(6_000);
  expect(cost("whisper-1", { seconds: 1 })).toBe(100);
  expect(cost("whisper-1", { seconds: 0.5 })).toBe(50);
  expect(cost("whisper-1", { seconds: 0.001 })).toBe(1);
  expect(cost("whisper-1", { seconds: 0 })).toBe(0);
  expect(cost("gpt-4o-mini-transcribe", { seconds: 90 })).toBe(4_500);
  expect(cost("tts-1", { characters: 1_000_000 })).toBe(15_000_000);
  expect(cost("tts-1", { characters: 1 })).toBe(15);
  expect(cost("tts-1-hd", { characters: 4_096 })).toBe(122_880);
  expect(cost("unheard-of", { seconds: 60 })).toBe(null);
  // A table has no price of an own kind of the model: that costs nothing.
  expect(estimateCost({ local: {} }, "local", { seconds: 60, characters: 9 })).toBe(0);
  // Rounded up once, not above what the sum is: three times 0.1 is no more than 0.3.
  expect(estimateCost({ m: { minute: 0.3, characters: 0.1 } }, "m", { seconds: 60, characters: 10 })).toBe(300_001);
  expect(estimateCost({ m: { minute: 0.1 } }, "m", { seconds: 180 })).toBe(300_000);
});

test("nobody is charged by a name of JavaScript's own", () => {
  for (const model of ["constructor", "toString", "__proto__"])
    expect(estimateCost(LIST_PRICES, model, { seconds: 60 })).toBe(null);
});

test("a price is no less than nothing and no more than a million", () => {
  expect(priceTable.safeParse({ m: { input: 0, output: 1_000_000 } }).success).toBe(true);
  for (const bad of [{ m: { input: -1 } }, { m: { minute: 1_000_001 } }, { m: { hour: 1 } }, { "": {} }, { m: 1 }, []])
    expect([bad, priceTable.safeParse(bad).success]).toEqual([bad, false]);
});

test("money has six decimals, at any size", () => {
  expect([0, 1, 999_999, 1_000_000, 12_345_678, 9_007_199_254_740_991].map(renderUsd)).toEqual([
    "0.000000",
    "0.000001",
    "0.999999",
    "1.000000",
    "12.345678",
    "9007199254.740991",
  ]);
});
