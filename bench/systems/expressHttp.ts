import express, { type NextFunction, type Request, type Response } from "express";
import { jwtVerify, SignJWT } from "jose";
import { argon2, createHash, randomBytes, randomUUID, timingSafeEqual } from "node:crypto";
import { promisify } from "node:util";
import postgres from "postgres";

/*
 * The floor for HTTP: the same five addresses with Express on Node, the same queries over the same driver and pool size,
 * the same token check with its session read, the same argon2id. No validation of answers, no log, no throttle.
 */

interface Message {
  id: string;
  seq: number;
  role: string;
  content: string;
  turn_id: string;
  client_id: string | null;
  created_at: Date;
  finish: string | null;
}
interface Identity {
  userId: string;
  sessionId: string;
}

const secret = new TextEncoder().encode(process.env["JWT_SECRET"]);
const sql = postgres(String(process.env["DATABASE_URL"]), {
  max: 20,
  types: { bigint: { to: 20, from: [20], parse: Number, serialize: String } },
});
const hash = promisify(argon2);
const columns = sql`id, user_id, gateway_id, agent_id, display_name, voice, model, status, state, state_reason,
  last_seq, message_count, last_active_at, created_at, updated_at`;

const app = express();
app.disable("x-powered-by");
app.use(express.json({ limit: "64kb" }));

app.get("/readyz", async (_request, response) => {
  await sql`select 1`;
  response.json({ ready: true });
});

app.post("/api/auth/login", async (request, response) => {
  const { email, password } = request.body as { email: string; password: string };
  const [user] = await sql`
    select id, email, email_verified, name, avatar_url, status, timezone, plan_of(id) as plan, created_at, password_hash
    from users where email = ${email}`;
  if (!user || !(await fits(password, String(user["password_hash"])))) {
    response.status(401).json({ error: "wrong e-mail or password" });
    return;
  }
  const sessionId = randomUUID();
  const refreshToken = `rt_${randomBytes(52).toString("base64url")}`;
  const tokenHash = createHash("sha256").update(refreshToken).digest();
  await sql.begin(async (tx) => {
    await tx`insert into audit_log (id, actor, action, subject_user_id, ip, request_id, details)
      values (${randomUUID()}, ${`user:${user["id"]}`}, 'session.login', ${user["id"]}, ${request.ip ?? null}, null, '{}')`;
    await tx`insert into refresh_tokens (id, user_id, token_hash, ip, expires_at)
      values (${sessionId}, ${user["id"]}, ${tokenHash}, ${request.ip ?? null}, now() + interval '30 days')`;
  });
  const { password_hash: _, ...shown } = user;
  const accessToken = await new SignJWT({ sid: sessionId })
    .setProtectedHeader({ alg: "HS256" })
    .setSubject(String(user["id"]))
    .setAudience("reef:user")
    .setJti(randomUUID())
    .setIssuedAt()
    .setExpirationTime("15m")
    .sign(secret);
  response.json({ user: shown, access_token: accessToken, refresh_token: refreshToken, expires_in: 900 });
});

app.get("/api/user/profile", requireUser, async (_request, response) => {
  const { userId } = response.locals as Identity;
  const [profile] = await sql`
    select id, email, email_verified, name, avatar_url, status, timezone, plan_of(id) as plan, created_at,
      timezone_changed_at, password_hash is not null as has_password,
      array(select distinct provider from identities i where i.user_id = users.id order by provider) as providers
    from users where id = ${userId}`;
  response.json(profile);
});

app.get("/api/assistants", requireUser, async (_request, response) => {
  const { userId } = response.locals as Identity;
  response.json(
    await sql`select ${columns} from assistants where user_id = ${userId} and status <> 'deleted' order by created_at, id`,
  );
});

app.get("/api/assistants/:id", requireUser, async (request, response) => {
  const assistant = await findAssistant(response, request);
  if (assistant) response.json(assistant);
});

app.get("/api/assistants/:id/messages", requireUser, async (request, response) => {
  const assistant = await findAssistant(response, request);
  if (!assistant) return;
  const { userId } = response.locals as Identity;
  const limit = Number(request.query["limit"] ?? 50);
  const rows = await sql<Message[]>`
    select id, assistant_id, turn_id, seq, role, content, client_id, finish, created_at from messages
    where user_id = ${userId} and assistant_id = ${String(request.params["id"])} order by seq desc limit ${limit + 1}`;
  const items = rows.slice(0, limit).toReversed();
  response.json({ items, last_seq: assistant["last_seq"], has_more: rows.length > limit });
});

async function findAssistant(response: Response, request: Request): Promise<postgres.Row | null> {
  const { userId } = response.locals as Identity;
  const [row] = await sql`
    select ${columns} from assistants
    where id = ${String(request.params["id"])} and user_id = ${userId} and status <> 'deleted'`;
  if (!row) response.status(404).json({ error: "not found" });
  return row ?? null;
}

async function requireUser(request: Request, response: Response, next: NextFunction): Promise<void> {
  const identity = await authenticate(request.headers.authorization ?? "").catch(() => null);
  if (!identity) {
    response.status(401).json({ error: "unauthorized" });
    return;
  }
  Object.assign(response.locals, identity);
  next();
}

async function authenticate(header: string): Promise<Identity | null> {
  const { payload } = await jwtVerify(header.replace(/^Bearer /, ""), secret, {
    algorithms: ["HS256"],
    audience: "reef:user",
  });
  const [row] = await sql`
    select s.revoked_at, u.status from refresh_tokens s join users u on u.id = s.user_id
    where s.id = ${String(payload["sid"])} and s.user_id = ${String(payload.sub)}`;
  if (!row || row["revoked_at"] || row["status"] !== "active") return null;
  return { userId: String(payload.sub), sessionId: String(payload["sid"]) };
}

/** Checks a password against `$argon2id$v=19$m=…,t=…,p=…$salt$hash` with Node's own argon2. */
async function fits(password: string, stored: string): Promise<boolean> {
  const [, , , parameters = "", salt = "", wanted = ""] = stored.split("$");
  const number = (name: string) => Number(new RegExp(`${name}=(\\d+)`).exec(parameters)?.[1]);
  const expected = Buffer.from(wanted, "base64");
  const found = await hash("argon2id", {
    message: password,
    nonce: Buffer.from(salt, "base64"),
    memory: number("m"),
    passes: number("t"),
    parallelism: number("p"),
    tagLength: expected.length,
  });
  return timingSafeEqual(found, expected);
}

app.listen(Number(process.env["PORT"]), "127.0.0.1");
