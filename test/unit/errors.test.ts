import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { isUnavailable, toAppError } from "../../src/http/problem.ts";
import { ERRORS } from "../../src/lib/errors.ts";

const SRC = join(import.meta.dir, "../../src");
const failure = (code: string) => Object.assign(new Error("x"), { code });

test("every code of the table is used", () => {
  const text = readdirSync(SRC, { recursive: true, encoding: "utf8" })
    .filter((path) => path.endsWith(".ts") && path !== "lib/errors.ts")
    .map((path) => readFileSync(join(SRC, path), "utf8"))
    .join("\n");
  expect(Object.keys(ERRORS).filter((code) => !text.includes(`"${code}"`))).toEqual([]);
});

test("a database that is away, full or too slow is service_unavailable; a wrong password is not", () => {
  for (const code of ["53100", "53300", "57014", "57P03", "EHOSTUNREACH", "ETIMEDOUT", "ENOTFOUND", "EAI_AGAIN"]) {
    expect(toAppError(failure(code))?.code).toBe("service_unavailable");
  }
  for (const code of ["28P01", "3D000", "23505", "42P01"]) expect(isUnavailable(failure(code))).toBe(false);
});
