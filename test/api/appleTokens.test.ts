import { afterAll, beforeAll, beforeEach, expect, test } from "bun:test";
import { loadConfig } from "../../src/config.ts";
import { createAppleTokens } from "../../src/clients/appleTokens.ts";
import { revokeAppleToken } from "../../src/services/appleTokens.ts";
import { startFakeIdentityProvider, type FakeIdentityProvider, type Trouble } from "../fakes/identityProvider.ts";
import { call } from "../factories.ts";
import { startTestReef, type TestReef } from "../harness.ts";

let apple: FakeIdentityProvider;
let google: FakeIdentityProvider;
let reef: TestReef;
beforeAll(async () => {
  [apple, google] = await Promise.all([startFakeIdentityProvider("apple"), startFakeIdentityProvider("google")]);
  reef = await startTestReef({ ...apple.env, ...google.env });
});
afterAll(async () => {
  await reef.stop();
  await Promise.all([apple.stop(), google.stop()]);
});
beforeEach(() => {
  apple.trouble = null;
  apple.complaints.length = 0;
});

const person = () => {
  const sub = crypto.randomUUID();
  return { sub, email: `${sub}@example.org`, email_verified: true };
};
type Person = ReturnType<typeof person>;

async function signIn(who: Person, authorization_code?: string): Promise<string> {
  const body = {
    provider: "apple",
    id_token: await apple.sign(who),
    ...(authorization_code ? { authorization_code } : {}),
  };
  const answer = await call(reef.url, "POST", "/api/auth/social", body);
  expect(answer.status).toBe(200);
  return answer.body.user.id;
}
const keptOf = async (userId: string): Promise<Buffer | null> =>
  (await reef.sql`select provider_token from identities where user_id = ${userId}`)[0]!["providerToken"];
const failuresOf = async (userId: string) =>
  (
    await reef.sql`
    select details from audit_log where subject_user_id = ${userId} and action = 'identity.token_failed' order by at`
  ).map((row) => row["details"]);
const tokensOf = (who: Person) => [...apple.refreshTokens.values()].filter((token) => token.subject === who.sub);

test("a code becomes a kept token, a later one takes its place, and it is revoked, as often as asked", async () => {
  const ada = person();
  const id = await signIn(ada, apple.issueCode(ada.sub));
  const first = await keptOf(id);
  await signIn(ada, apple.issueCode(ada.sub));
  const kept = (await keptOf(id))!;
  expect(kept.equals(first!)).toBe(false);
  const [newest] = [...apple.refreshTokens.keys()].slice(-1);
  expect(kept.toString("latin1")).not.toContain(newest!);
  for (let i = 0; i < 2; i++) expect(await revokeAppleToken(reef.deps, kept)).toBe("revoked");
  expect(tokensOf(ada).map((token) => token.live)).toEqual([true, false]);
  expect(apple.complaints).toEqual([]);
  expect(await failuresOf(id)).toEqual([]);
});

test("a token that Apple does not know any more counts as revoked", async () => {
  const ada = person();
  const id = await signIn(ada, apple.issueCode(ada.sub));
  apple.refreshTokens.clear();
  expect(await revokeAppleToken(reef.deps, (await keptOf(id))!)).toBe("revoked");
  expect(apple.complaints).toEqual(["unknown token"]);
});

test("a code that is wrong, used or somebody else's does not fail the sign-in, and the next one is kept", async () => {
  const [ada, eve] = [person(), person()];
  const used = apple.issueCode(ada.sub);
  await signIn(ada, used);
  const id = await signIn(eve, "no-such-code");
  await signIn(eve, used);
  await signIn(eve, apple.issueCode(ada.sub));
  expect(await keptOf(id)).toBeNull();
  expect(await failuresOf(id)).toEqual([
    { provider: "apple", reason: "invalid_grant" },
    { provider: "apple", reason: "invalid_grant" },
    { provider: "apple", reason: "other_subject" },
  ]);
  await signIn(eve, apple.issueCode(eve.sub));
  expect(await keptOf(id)).not.toBeNull();
});

test("without a code nothing is asked; a code with Google's token is nothing to Google", async () => {
  const before = apple.counts["/auth/token"];
  const id = await signIn(person());
  const id_token = await google.sign(person());
  const body = { provider: "google", id_token, authorization_code: apple.issueCode("x") };
  expect((await call(reef.url, "POST", "/api/auth/social", body)).status).toBe(200);
  expect([await keptOf(id), apple.counts["/auth/token"] - before]).toEqual([null, 0]);
});

for (const trouble of ["error", "garbage", "huge", "hang", "stall"] as Trouble[]) {
  test(`Apple's token service in trouble (${trouble}): the sign-in succeeds, the revocation is to be tried again`, async () => {
    const ada = person();
    const id = await signIn(ada, apple.issueCode(ada.sub));
    const kept = (await keptOf(id))!;
    apple.trouble = trouble;
    const [, revocation] = await Promise.all([
      signIn(ada, apple.issueCode(ada.sub)),
      revokeAppleToken(reef.deps, kept).catch((error: Error) => error),
    ]);
    if (trouble === "garbage") expect(revocation).toBe("revoked");
    else expect(revocation).toBeInstanceOf(Error);
    const reason = trouble === "error" ? "status_500" : trouble === "garbage" ? "no token" : "unavailable";
    expect(await failuresOf(id)).toEqual([{ provider: "apple", reason }]);
    expect((await keptOf(id))!.equals(kept)).toBe(true);
    apple.trouble = null;
    expect(await revokeAppleToken(reef.deps, kept)).toBe("revoked");
    expect(tokensOf(ada).filter((token) => token.live)).toEqual([]);
  });
}

test("a wrong key of ours is an error to try again, not a revocation", async () => {
  const ada = person();
  const kept = (await keptOf(await signIn(ada, apple.issueCode(ada.sub))))!;
  const appleTokens = createAppleTokens(loadConfig({ ...reef.env, APPLE_KEY_ID: "OTHER" }));
  const faultOf = (other: typeof appleTokens) =>
    revokeAppleToken({ config: reef.deps.config, appleTokens: other }, kept).catch(
      (error: { code: string }) => error.code,
    );
  expect([await faultOf(appleTokens), await faultOf(null)]).toEqual(["invalid_client", "provider_not_configured"]);
  const config = { ...reef.deps.config, JWT_SECRET: "another-secret-of-enough-characters" };
  expect(await revokeAppleToken({ config, appleTokens }, kept)).toBe("unreadable");
  expect(tokensOf(ada).map((token) => token.live)).toEqual([true]);
});

test("an account whose deletion begins, or ends, while its code is exchanged has its new token revoked", async () => {
  for (const leave of [
    (id: string) => reef.sql`update users set status = 'deleting' where id = ${id}`,
    (id: string) => reef.sql`delete from users where id = ${id}`,
  ]) {
    const ada = person();
    const id = await signIn(ada);
    apple.meanwhile = async (path) => path === "/auth/token" && (await leave(id));
    await signIn(ada, apple.issueCode(ada.sub)).finally(() => (apple.meanwhile = null));
    expect(tokensOf(ada).map((token) => token.live)).toEqual([false]);
    expect(await failuresOf(id)).toEqual([]);
  }
});
