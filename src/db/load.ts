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

/** Reads what a gateway has to do: partial indexes only, so it costs the same however long the history is. */
export async function readGatewayLoad(
  sql: Queryable,
  input: { gatewayId: string; owner: string },
): Promise<GatewayLoad | null> {
  const [row] = await sql<GatewayLoad[]>`
    with unfinished as (
      select status, count(*) as n, coalesce(extract(epoch from now() - min(queued_at)), 0)::float8 as age,
        count(*) filter (where lease_owner = ${input.owner} and status <> 'queued') as here
      from turns where status in ('queued', 'dispatched', 'streaming') and gateway_id = ${input.gatewayId} group by status
    ), placed as (
      select state, count(*) as n from assistants
      where gateway_id = ${input.gatewayId} and state in ('waking', 'awake', 'failed') group by state
    )
    select coalesce((select jsonb_object_agg(status, n) from unfinished), '{}') as turns,
      coalesce((select jsonb_object_agg(state, n) from placed), '{}') as assistants,
      coalesce((select age from unfinished where status = 'queued'), 0) as oldest_seconds,
      coalesce((select sum(here) from unfinished), 0)::int as running_here,
      g.working_set, g.drift_repairs
    from gateways g where g.id = ${input.gatewayId}`;
  return row ?? null;
}
