import type { PendingQuery, Row } from "postgres";
import { z } from "zod";
import type { Queryable, Sql } from "./connect.ts";

const CHANNEL = "reef";

/**
 * What a notification is about. It carries ids only and is only a hint: whoever hears it reads the rows.
 * `turn`: the queue of a gateway changed. `assistant`: its state, settings or status changed. `gateway`: who is to be
 * awake there may have changed. `message`: a row was added to a conversation. `stop`: somebody asked to stop a turn.
 * `session`: a session was revoked. `mail`: the outbox has a new one. `deletion`: an account is to be deleted, or its
 * deletion may go on. `stripe`: the inbox of Stripe's events has a new one. `plan`: a user's plan, or what it rests on,
 * changed (sent by a trigger, whoever changes it). `usage`: a user's day came to a
 * mark that its devices are told of. `beat`: a process asks whether it still hears (services/databaseWatch.ts).
 */
const noticeSchema = z.object({
  kind: z.enum([
    "turn",
    "assistant",
    "gateway",
    "message",
    "stop",
    "session",
    "mail",
    "deletion",
    "stripe",
    "plan",
    "usage",
    "beat",
  ]),
  id: z.string(),
});
export type Notice = z.infer<typeof noticeSchema>;

/** Sends a notice when the surrounding transaction commits (at once outside of one). `where`: only under a condition. */
export async function notify(
  sql: Queryable,
  kind: Notice["kind"],
  id: string,
  where: PendingQuery<Row[]> = sql``,
): Promise<void> {
  await sql`select pg_notify(${CHANNEL}, ${JSON.stringify({ kind, id })}) ${where}`;
}

/**
 * Hears every notice, over one connection of its own that is opened again for ever. `onGap` runs each time it (re)opens:
 * what was sent meanwhile is lost, so read everything. Resolves once listening; returns the function that stops it.
 */
export async function listen(
  sql: Sql,
  onNotice: (notice: Notice) => void,
  onGap: () => void,
): Promise<() => Promise<void>> {
  const meta = await sql.listen(
    CHANNEL,
    (payload) => {
      const notice = parseNotice(payload);
      if (notice) onNotice(notice);
    },
    onGap,
  );
  return () => meta.unlisten();
}

function parseNotice(payload: string): Notice | null {
  try {
    return noticeSchema.safeParse(JSON.parse(payload)).data ?? null;
  } catch {
    return null;
  }
}
