import { expect, test } from "bun:test";
import { seal, unseal } from "../../src/lib/sealed.ts";

const SECRET = "a-test-secret-of-enough-characters";

test("what was sealed can be read again, also an empty and a long text, and looks different each time", () => {
  for (const text of ["", "r.1.token", "ü💬".repeat(5000)]) {
    expect(unseal(SECRET, "a", seal(SECRET, "a", text))).toBe(text);
  }
  expect(seal(SECRET, "a", "x").equals(seal(SECRET, "a", "x"))).toBe(false);
  expect(seal(SECRET, "a", "in clear").toString("latin1")).not.toContain("in clear");
});

test("another secret, another purpose, any changed byte and any other length open nothing", () => {
  const sealed = seal(SECRET, "a", "token");
  expect(unseal(`${SECRET}x`, "a", sealed)).toBeNull();
  expect(unseal(SECRET, "b", sealed)).toBeNull();
  for (let i = 0; i < sealed.length; i++) {
    const changed = Buffer.from(sealed);
    changed[i]! ^= 1;
    expect(unseal(SECRET, "a", changed)).toBeNull();
    expect(unseal(SECRET, "a", sealed.subarray(0, i))).toBeNull();
  }
  expect(unseal(SECRET, "a", Buffer.concat([sealed, Buffer.of(0)]))).toBeNull();
});
