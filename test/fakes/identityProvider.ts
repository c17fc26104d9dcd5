import { createHash, generateKeyPairSync, type KeyObject } from "node:crypto";
import { exportJWK, exportSPKI, generateKeyPair, jwtVerify, SignJWT, type JWK } from "jose";

/** What the server does instead of answering: fails, never answers, stops in mid-answer, answers nonsense or far too much. */
export type Trouble = "error" | "hang" | "stall" | "garbage" | "huge" | "redirect" | "bad key";

export interface FakeIdentityProvider {
  url: string;
  clientId: string;
  /** The variables that make this server the provider. */
  env: Record<string, string>;
  /** Requests so far, by path. */
  counts: Record<"/auth/keys" | "/auth/token" | "/auth/revoke", number>;
  trouble: Trouble | null;
  /** Runs when a request has come and is not answered yet. */
  meanwhile: ((path: string) => Promise<unknown>) | null;
  /** The key that signs now. */
  key: { kid: string; privateKey: CryptoKey; publicPem: string };
  /** Signs an identity token: the person's claims over what the provider says of everybody. */
  sign(claims: Record<string, unknown>, header?: Record<string, unknown>): Promise<string>;
  /** Another key from now on; the old one is not published any more. */
  rotate(): Promise<void>;
  /** Apple: a code as the app gets it with its identity token. */
  issueCode(subject: string): string;
  /** Apple: refresh tokens that were given out, and whether they live. */
  refreshTokens: Map<string, { subject: string; live: boolean }>;
  /** What was wrong with requests to /auth/token and /auth/revoke, in words. */
  complaints: string[];
  goDown(): Promise<void>;
  comeBack(): void;
  stop(): Promise<void>;
}

const TEAM_ID = "TEAM123456";
const KEY_ID = "KEY1234567";

interface Code {
  subject: string;
  used: boolean;
}

/** A real HTTP server that speaks as Apple (keys, /auth/token, /auth/revoke) or as Google (keys) does. */
export async function startFakeIdentityProvider(kind: "apple" | "google"): Promise<FakeIdentityProvider> {
  const clientId = kind === "apple" ? "com.example.reef" : "1234.apps.googleusercontent.com";
  const secretKeys = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const published: JWK[] = [];
  const codes = new Map<string, Code>();
  const open = new Set<() => void>();
  let fake: FakeIdentityProvider;

  async function handle(request: Request): Promise<Response> {
    const path = new URL(request.url).pathname as keyof FakeIdentityProvider["counts"] | "/elsewhere";
    if (path === "/elsewhere") return Response.json({ keys: published });
    if (!(path in fake.counts)) return new Response("no such page", { status: 404 });
    fake.counts[path] += 1;
    await fake.meanwhile?.(path);
    if (fake.trouble) return misbehave(fake.trouble, open, published);
    if (path === "/auth/keys") return Response.json({ keys: published });
    return answerApple(request, path, { fake, codes, clientId, publicKey: secretKeys.publicKey });
  }

  let server = Bun.serve({ hostname: "127.0.0.1", port: 0, idleTimeout: 0, fetch: handle });
  const port = server.port!;
  const url = `http://127.0.0.1:${port}`;
  const release = async () => {
    for (const end of open) end();
    await server.stop(true);
  };
  fake = {
    url,
    clientId,
    env: envOf(kind, url, clientId, secretKeys.privateKey),
    counts: { "/auth/keys": 0, "/auth/token": 0, "/auth/revoke": 0 },
    trouble: null,
    meanwhile: null,
    key: await makeKey(published),
    sign: (claims, header = {}) => {
      const now = Math.floor(Date.now() / 1000);
      const common = { iss: url, aud: clientId, iat: now, exp: now + 600, ...claims };
      return new SignJWT(common)
        .setProtectedHeader({ alg: "RS256", kid: fake.key.kid, ...header })
        .sign(fake.key.privateKey);
    },
    async rotate() {
      published.length = 0;
      fake.key = await makeKey(published);
    },
    issueCode(subject) {
      const code = `c${crypto.randomUUID()}`;
      codes.set(code, { subject, used: false });
      return code;
    },
    refreshTokens: new Map(),
    complaints: [],
    goDown: release,
    comeBack: () => void (server = Bun.serve({ hostname: "127.0.0.1", port, idleTimeout: 0, fetch: handle })),
    stop: release,
  };
  return fake;
}

function envOf(kind: "apple" | "google", url: string, clientId: string, key: KeyObject): Record<string, string> {
  if (kind === "google")
    return {
      GOOGLE_ISSUER: url,
      GOOGLE_KEYS_URL: `${url}/auth/keys`,
      GOOGLE_CLIENT_IDS: `${clientId}, android.client`,
    };
  const pem = key.export({ type: "pkcs8", format: "pem" }) as string;
  return {
    APPLE_URL: url,
    APPLE_CLIENT_IDS: clientId,
    APPLE_TEAM_ID: TEAM_ID,
    APPLE_KEY_ID: KEY_ID,
    APPLE_PRIVATE_KEY: pem.replaceAll("\n", "\\n"),
  };
}

async function makeKey(published: JWK[]): Promise<FakeIdentityProvider["key"]> {
  const { publicKey, privateKey } = await generateKeyPair("RS256", { extractable: true });
  const jwk = await exportJWK(publicKey);
  const kid = createHash("sha256").update(jwk.n!).digest("hex").slice(0, 10);
  published.push({ ...jwk, kid, use: "sig", alg: "RS256" });
  return { kid, privateKey, publicPem: await exportSPKI(publicKey) };
}

// What is too large, or elsewhere, would be right but for that.
function misbehave(trouble: Trouble, open: Set<() => void>, keys: JWK[]): Response | Promise<Response> {
  if (trouble === "error") return new Response("sorry", { status: 500 });
  if (trouble === "garbage") return new Response("<html>Welcome to the hotel's network</html>");
  if (trouble === "huge") return Response.json({ keys, padding: "x".repeat(1024 * 1024) });
  if (trouble === "redirect") return new Response(null, { status: 302, headers: { location: "/elsewhere" } });
  if (trouble === "bad key") return Response.json({ keys: [{ kty: "RSA", kid: "bad", alg: "RS256", n: "!", e: "!" }] });
  const waiting = Promise.withResolvers<void>();
  open.add(() => waiting.resolve());
  if (trouble === "hang") return waiting.promise.then(() => new Response("late"));
  return new Response(
    new ReadableStream({
      async pull(controller) {
        controller.enqueue(new TextEncoder().encode('{"keys":['));
        await waiting.promise;
        controller.close();
      },
    }),
  );
}

interface AppleServer {
  fake: FakeIdentityProvider;
  codes: Map<string, Code>;
  clientId: string;
  publicKey: KeyObject;
}

async function answerApple(request: Request, path: string, server: AppleServer): Promise<Response> {
  const refuse = (error: string, complaint: string) => {
    server.fake.complaints.push(complaint);
    return Response.json({ error }, { status: 400 });
  };
  if (
    request.method !== "POST" ||
    !request.headers.get("content-type")?.startsWith("application/x-www-form-urlencoded")
  )
    return refuse("invalid_request", "not a form");
  const form = new URLSearchParams(await request.text());
  const fault = await findSecretFault(form, server);
  if (fault) return refuse("invalid_client", fault);
  if (path === "/auth/revoke") return revoke(form, server, refuse);
  if (form.get("grant_type") !== "authorization_code") return refuse("unsupported_grant_type", "grant_type");
  const code = server.codes.get(form.get("code") ?? "");
  if (!code || code.used) return refuse("invalid_grant", "code");
  code.used = true;
  const refreshToken = `r${crypto.randomUUID()}`;
  server.fake.refreshTokens.set(refreshToken, { subject: code.subject, live: true });
  return Response.json({
    access_token: `a${crypto.randomUUID()}`,
    token_type: "Bearer",
    expires_in: 3600,
    refresh_token: refreshToken,
    id_token: await server.fake.sign({ sub: code.subject }),
  });
}

function revoke(
  form: URLSearchParams,
  { fake }: AppleServer,
  refuse: (error: string, why: string) => Response,
): Response {
  if (form.get("token_type_hint") !== "refresh_token") return refuse("invalid_request", "token_type_hint");
  const token = fake.refreshTokens.get(form.get("token") ?? "");
  if (!token) return refuse("invalid_grant", "unknown token");
  token.live = false;
  return new Response(null);
}

/** Checks the client secret as Apple's documents say; null when it is right. */
async function findSecretFault(form: URLSearchParams, { clientId, publicKey }: AppleServer): Promise<string | null> {
  if (form.get("client_id") !== clientId) return "client_id";
  try {
    const { payload, protectedHeader } = await jwtVerify(form.get("client_secret") ?? "", publicKey, {
      algorithms: ["ES256"],
      issuer: TEAM_ID,
      subject: clientId,
      audience: "https://appleid.apple.com",
      requiredClaims: ["iat", "exp"],
    });
    if (protectedHeader.kid !== KEY_ID) return "kid";
    return payload.exp! - payload.iat! > 15_777_000 ? "lives longer than six months" : null;
  } catch (error) {
    return `client secret: ${(error as Error).message}`;
  }
}
