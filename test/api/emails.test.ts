import { afterAll, beforeAll, expect, test } from "bun:test";
import { call } from "../factories.ts";
import { startTestReef, type TestReef } from "../harness.ts";

let reef: TestReef;
beforeAll(async () => void (reef = await startTestReef()));
afterAll(() => reef.stop());

const PASSWORD = "correct horse battery";
const signUp = (email: string, password = PASSWORD) => call(reef.url, "POST", "/api/auth/signup", { email, password });
const logIn = (email: string, password = PASSWORD) => call(reef.url, "POST", "/api/auth/login", { email, password });
const unique = () => `u${crypto.randomUUID().slice(0, 8)}`;

test("case makes no other account: not in sign-up, not in sign-in, not side by side", async () => {
  const name = unique();
  const spellings = [`${name.toUpperCase()}@Example.com`, `${name}@example.com`, `${name}@EXAMPLE.COM`];
  const answers = await Promise.all([...spellings, ...spellings].map((email) => signUp(email)));
  expect(answers.map(({ status }) => status).sort((a, b) => a - b)).toEqual([201, ...Array(5).fill(409)]);
  const ids = await Promise.all(spellings.map(async (email) => (await logIn(email)).body.user.id));
  expect(new Set(ids).size).toBe(1);
});

test("look-alikes are refused, and lead to nobody's account", async () => {
  const name = unique();
  expect((await signUp(`${name}k@example.com`)).status).toBe(201);
  const lookAlikes = [
    `${name}k＠example.com`, // fullwidth @
    `${name}ｋ@example.com`, // fullwidth k
    `${name}\u212a@example.com`, // Kelvin sign, whose lower case is k
    `${name}k@ex\u0430mple.com`, // Cyrillic а
    `${name}k@examp\u2113e.com`, // script l, whose NFKC is l
    `${name}k@example\u3002com`, // ideographic full stop
    `${name}k\u200b@example.com`, // zero width space
    `${name}k@example.com\u0000`,
    `${name}k@example.com\r\nBcc: x@example.com`,
    ` ${name}k@example.com`,
    `"${name}k"@example.com`,
    `${name}k@example.com, x@example.com`,
    `${name}k@[127.0.0.1]`,
    `${name}k@localhost`,
  ];
  for (const email of lookAlikes) {
    for (const answer of [await signUp(email), await logIn(email)])
      expect([email, answer.status, answer.body.code]).toEqual([email, 400, "validation_failed"]);
  }
});

test("a domain in its ASCII form, a tag and a dot are addresses of their own", async () => {
  const name = unique();
  const emails = [
    `${name}@example.com`,
    `${name}@xn--exmple-4nf.com`,
    `${name}+tag@example.com`,
    `${name}.x@example.com`,
  ];
  const ids = await Promise.all(emails.map(async (email) => (await signUp(email)).body.user.id));
  expect(new Set(ids).size).toBe(4);
});

test("addresses at, under and over 254 characters", async () => {
  const ofLength = (length: number) => {
    const head = `${unique()}@${"d".repeat(60)}.${"e".repeat(60)}.${"f".repeat(60)}.`;
    return `${head}${"g".repeat(length - head.length - 4)}.com`;
  };
  for (const [length, status] of [
    [253, 201],
    [254, 201],
    [255, 400],
    [5000, 400],
  ] as const)
    expect([length, (await signUp(ofLength(length))).status]).toEqual([length, status]);
});

test("passwords at, under and over the limits, counted in letters as a person sees them composed", async () => {
  const cases: [string, number, string | undefined][] = [
    ["z9#kq7!", 400, "validation_failed"],
    ["z9#kq7!v", 201, undefined],
    ["z9#kq7! ".repeat(32), 201, undefined],
    [`${"z9#kq7! ".repeat(32)}x`, 400, "validation_failed"],
    ["e\u0301".repeat(4), 400, "validation_failed"],
    ["e\u0301".repeat(8), 201, undefined],
    ["😀".repeat(4), 400, "validation_failed"],
    ["😀🚲🌧️🍕🎻🐙🏔️🧵", 201, undefined],
    ["\ud800 half a letter", 201, undefined],
    ["nul \u0000 inside", 201, undefined],
    ["password", 400, "weak_password"],
    ["PASSWORD2024!", 400, "weak_password"],
    ["ｐａｓｓｗｏｒｄ", 400, "weak_password"],
  ];
  for (const [password, status, code] of cases) {
    const email = `${unique()}@example.com`;
    const answer = await signUp(email, password);
    expect([password, answer.status, answer.body.code]).toEqual([password, status, code]);
    if (status === 201) expect((await logIn(email, password)).status).toBe(200);
  }
});

test("the same password in another Unicode form signs in", async () => {
  const email = `${unique()}@example.com`;
  await signUp(email, "caf\u00e9 cr\u00e8me bleue");
  expect((await logIn(email, "cafe\u0301 cre\u0300me bleue")).status).toBe(200);
});
