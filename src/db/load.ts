import type { Queryable } from "./connect.ts";

/** What a gateway has to do now. */
export interface GatewayLoad {
  /** Unfinished turns by status, configured and failed assistants by state; what there is none of is left out. */
  turns: Record<string, number>;
  assistants: Record<string, number>;
  oldestSeconds: number;
  runningHere: number;
  workingSet: number;
  driftRepairs: number;
}

/** Reads what a gateway has to do, or all of them together (null): partial indexes only, so it costs the same however long the history is. */
export async function readGatewayLoad(
  sql: Queryable,
  input: { gatewayId: string | null; owner: string },
): Promise<GatewayLoad | null> {
  const here = (column: string) => (input.gatewayId === null ? sql`true` : sql`${sql(column)} = ${input.gatewayId}`);
  const [row] = await sql<GatewayLoad[]>`
    with unfinished as (
      select status, count(*) as n, coalesce(extract(epoch from now() - min(queued_at)), 0)::float8 as age,
        count(*) filter (where lease_owner = ${input.owner} and status <> 'queued') as here
      from turns where status in ('queued', 'dispatched', 'streaming') and ${here("gateway_id")} group by status
    ), placed as (
      select state, count(*) as n from assistants
      where ${here("gateway_id")} and state in ('waking', 'awake', 'failed') group by state
    )
    select coalesce((select jsonb_object_agg(status, n) from unfinished), '{}') as turns,
      coalesce((select jsonb_object_agg(state, n) from placed), '{}') as assistants,
      coalesce((select age from unfinished where status = 'queued'), 0) as oldest_seconds,
      coalesce((select sum(here) from unfinished), 0)::int as running_here,
      coalesce(sum(g.working_set), 0)::int as working_set, coalesce(sum(g.drift_repairs), 0)::float8 as drift_repairs
    from gateways g where ${here("g.id")}`;
  return row ?? null;
}
