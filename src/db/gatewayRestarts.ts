import type { Queryable } from "./connect.ts";

/** How often a gateway was restarted by the health check within the last hour and the last day. */
export async function countRestarts(sql: Queryable, gatewayId: string): Promise<{ hour: number; day: number }> {
  const [row] = await sql<{ hour: number; day: number }[]>`
    select count(*) filter (where asked_at > now() - interval '1 hour')::int as hour, count(*)::int as day
    from gateway_restarts where gateway_id = ${gatewayId} and asked_at > now() - interval '1 day'`;
  return row ?? { hour: 0, day: 0 };
}

/** Records a restart before it is asked for. */
export async function insertRestart(
  sql: Queryable,
  restart: { id: string; gatewayId: string; host: string; reason: string },
): Promise<void> {
  const { id, gatewayId, host, reason } = restart;
  await sql`insert into gateway_restarts (id, gateway_id, host, reason) values (${id}, ${gatewayId}, ${host}, ${reason})`;
}
