import { expect, test } from "bun:test";
import { createCommonPasswords } from "../../src/clients/commonPasswords.ts";
import { createPasswords } from "../../src/lib/passwords.ts";
import { requireGoodPassword } from "../../src/services/passwordRules.ts";

const isCommon = createCommonPasswords();
const codeOf = (work: Promise<unknown>) =>
  work.then(
    () => "ok",
    (error: { code: string }) => error.code,
  );

test("common passwords are refused in any case, width and with digits behind them; others are not", async () => {
  for (const common of [
    "password",
    "12345678",
    "PassWord",
    "iloveyou2024!",
    "ｐａｓｓｗｏｒｄ",
    "qwertyuiop",
    "trustno1",
  ])
    expect([common, await isCommon(common)]).toEqual([common, true]);
  for (const fine of [
    "correct horse battery",
    "long enough",
    "xkcd-936-staple",
    "password\nqwertyui",
    "\n",
    "93847561",
  ])
    expect([fine, await isCommon(fine)]).toEqual([fine, false]);
});

test("nobody sets a common password past the hasher, and none waits in line for it", async () => {
  expect(await codeOf(createPasswords(isCommon).hash("Football1"))).toBe("weak_password");
});

test("the account's own address is no password, in any case and width", () => {
  for (const password of ["some.body@example.org", "Some.Body@Example.ORG", "some.body＠example.org"])
    expect(() => requireGoodPassword(password, "some.body@example.org")).toThrow("too easy");
  requireGoodPassword("some.body@example.orgs", "some.body@example.org");
});

test("a password typed on another keyboard in another Unicode form fits; another one does not", async () => {
  const passwords = createPasswords(async () => false);
  const hash = await passwords.hash("caf\u00e9 cr\u00e8me");
  expect(await passwords.verify("cafe\u0301 cre\u0300me", hash)).toBe(true);
  expect(await passwords.verify("cafe creme", hash)).toBe(false);
  expect(await passwords.verify("caf\u00e9 cr\u00e8me", null)).toBe(false);
});

test("hashes of ASCII passwords made before that rule still fit", async () => {
  const before = await Bun.password.hash("plain old password", {
    algorithm: "argon2id",
    memoryCost: 19_456,
    timeCost: 2,
  });
  expect(await createPasswords(isCommon).verify("plain old password", before)).toBe(true);
});

test("two at a time, 250 wait, one more is sent away; all who waited get their turn in order", async () => {
  const passwords = createPasswords(async () => false, 2);
  const gate = Promise.withResolvers<void>();
  let now = 0;
  let most = 0;
  const order: number[] = [];
  const work = (i: number) =>
    passwords.inTurn(async () => {
      most = Math.max(most, ++now);
      await gate.promise;
      order.push(i);
      now -= 1;
    });
  const all = Array.from({ length: 252 }, (_, i) => work(i));
  expect(await codeOf(work(252))).toBe("service_unavailable");
  gate.resolve();
  await Promise.all(all);
  expect([most, order]).toEqual([2, Array.from({ length: 252 }, (_, i) => i)]);
  await work(253);
});

test("work that fails gives its place to the next", async () => {
  const passwords = createPasswords(async () => false, 2);
  const failing = Array.from({ length: 20 }, () => passwords.inTurn(() => Promise.reject(new Error("no"))));
  expect((await Promise.allSettled(failing)).every(({ status }) => status === "rejected")).toBe(true);
  expect(await passwords.inTurn(async () => "works")).toBe("works");
});
