import type { Sql } from "../src/db/connect.ts";
import { notify } from "../src/db/notify.ts";
import { newAgentId, newId } from "../src/lib/ids.ts";
import { createPasswords } from "../src/lib/passwords.ts";
import { signAccessToken } from "../src/services/accessTokens.ts";
import { GATEWAY_ID, JWT_SECRET } from "./systems/reef.ts";

export const PASSWORD = "correct horse battery";
const BATCH = 1_000;

/** Somebody with a session and one assistant, written straight into the database. */
export interface Person {
  userId: string;
  email: string;
  token: string;
  assistantId: string;
  agentId: string;
}

/** Adds people on the largest plan, its daily number of messages lifted. The database must be migrated. */
export async function createPeople(sql: Sql, count: number, gatewayId = GATEWAY_ID): Promise<Person[]> {
  await sql`update plan_limits set text_messages = 1000000000`;
  await sql`insert into gateways (id, working_set) values (${gatewayId}, 1) on conflict do nothing`;
  const passwordHash = await createPasswords(async () => false).hash(PASSWORD);
  const people: Person[] = [];
  while (people.length < count) {
    const size = Math.min(BATCH, count - people.length);
    people.push(...(await createBatch(sql, size, passwordHash, gatewayId)));
  }
  return people;
}

async function createBatch(sql: Sql, size: number, passwordHash: string, gatewayId: string): Promise<Person[]> {
  const made = await Promise.all(
    Array.from({ length: size }, async () => {
      const userId = newId();
      const sessionId = newId();
      const token = await signAccessToken({ JWT_SECRET }, { userId, sessionId });
      const email = `${userId}@example.org`;
      return { userId, sessionId, token, email, assistantId: newId(), agentId: newAgentId() };
    }),
  );
  const never = new Date(Date.now() + 86_400_000);
  await sql`insert into users ${sql(made.map(({ userId, email }) => ({ id: userId, email, passwordHash })))}`;
  await sql`insert into subscriptions ${sql(made.map(({ userId }) => ({ userId, plan: "premium" })))}`;
  await sql`insert into refresh_tokens ${sql(
    made.map(({ userId, sessionId }) => ({ id: sessionId, userId, tokenHash: Buffer.alloc(32), expiresAt: never })),
  )}`;
  await sql`insert into assistants ${sql(
    made.map(({ userId, assistantId, agentId }) => ({
      id: assistantId,
      userId,
      agentId,
      gatewayId,
      voice: "nova",
      model: "openai-custom/gpt-5-nano",
    })),
  )}`;
  return made;
}

/** Waits until every assistant is configured on the gateway. */
export async function wakeEveryone(sql: Sql): Promise<void> {
  await notify(sql, "assistant", "all");
  const until = performance.now() + 60_000;
  while (performance.now() < until) {
    const [row] = await sql<{ n: number }[]>`select count(*)::int as n from assistants where state <> 'awake'`;
    if (row?.n === 0) return;
    await Bun.sleep(50);
  }
  throw new Error("the assistants did not wake within a minute");
}
