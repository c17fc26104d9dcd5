import type { Queryable } from "./connect.ts";
import { notify } from "./notify.ts";

export type CanaryResult = "ok" | "leak" | "failed";

/** What is known of a gateway's isolation. */
export interface Canary {
  gatewayId: string;
  version: string | null;
  result: CanaryResult | null;
  at: Date | null;
  greenAt: Date | null;
  /** What the last run that told something was about (services/canary.ts). */
  of: string | null;
  leaks: string[];
  placementStoppedReason: string | null;
  createdAt: Date;
}

const columns = (sql: Queryable) =>
  sql`id as gateway_id, version, canary_result as result, canary_at as at, canary_green_at as green_at, canary_of as of,
    canary_leaks as leaks, placement_stopped_reason, created_at`;

/** Has the pair configured for `forMs`: a run that is killed leaves it awake no longer. */
export async function wakeCanary(sql: Queryable, input: { gatewayId: string; forMs: number }): Promise<void> {
  await sql`
    update gateways set canary_until = now() + make_interval(secs => ${input.forMs / 1000}) where id = ${input.gatewayId}`;
  await notify(sql, "gateway", input.gatewayId);
}

export async function restCanary(sql: Queryable, gatewayId: string): Promise<void> {
  await sql`update gateways set canary_until = null where id = ${gatewayId}`;
  await notify(sql, "gateway", gatewayId);
}

export async function isCanaryAwake(sql: Queryable, gatewayId: string): Promise<boolean> {
  const [row] = await sql<{ awake: boolean }[]>`
    select coalesce(canary_until > now(), false) as awake from gateways where id = ${gatewayId}`;
  return row?.awake ?? false;
}

export async function findCanary(sql: Queryable, gatewayId: string): Promise<Canary | null> {
  const [row] = await sql<Canary[]>`select ${columns(sql)} from gateways where id = ${gatewayId}`;
  return row ?? null;
}

export async function listCanaries(sql: Queryable): Promise<Canary[]> {
  return sql<Canary[]>`select ${columns(sql)} from gateways order by id`;
}

/** Records a run. One that failed says nothing new about leaks, nor about which configuration was looked at. */
export async function recordCanary(
  sql: Queryable,
  run: { gatewayId: string; result: CanaryResult; of: string; leaks: string[] },
): Promise<void> {
  const told = run.result !== "failed";
  await sql`
    update gateways set canary_at = now(), canary_result = ${run.result},
      canary_green_at = case when ${run.result} = 'ok' then now() else canary_green_at end,
      canary_of = case when ${told} then ${run.of} else canary_of end,
      canary_leaks = case when ${told} then ${run.leaks}::text[] else canary_leaks end
    where id = ${run.gatewayId}`;
}

/** Places nobody on it any more. False when that was so already; a leak takes the place of any other reason. */
export async function stopPlacement(
  sql: Queryable,
  input: { gatewayId: string; reason: string; unprovedMs: number },
): Promise<boolean> {
  const result = await sql`
    update gateways set placement_stopped_reason = ${input.reason}
    where id = ${input.gatewayId} and placement_stopped_reason is distinct from ${input.reason}
      and (placement_stopped_reason is null or ${input.reason} = 'canary_leak')
      and coalesce(canary_green_at, created_at) <= now() - make_interval(secs => ${input.unprovedMs / 1000})`;
  return result.count === 1;
}

/** Places people there again, if it was stopped for this reason and the last run was green. */
export async function allowPlacement(sql: Queryable, input: { gatewayId: string; reason: string }): Promise<boolean> {
  const result = await sql`
    update gateways set placement_stopped_reason = null
    where id = ${input.gatewayId} and placement_stopped_reason = ${input.reason} and canary_result = 'ok'`;
  return result.count === 1;
}
