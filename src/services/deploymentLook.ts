import { countOpenAlarms, listGatewaySights, listJobSights, listLagging, type JobSight } from "../db/operations.ts";
import { listGatewayBackups, type GatewayBackup } from "../db/gateways.ts";
import type { Deps } from "../deps.ts";
import { withDeadline } from "../lib/retry.ts";

type LookDeps = Pick<Deps, "config" | "metrics" | "sql">;

const RESULTS = ["ok", "leak", "failed"] as const;
const OUTCOMES = ["ok", "failed", "running"] as const;

/** Looks at what only Postgres knows of the deployment; each part has its own deadline, and is absent when it is missed. */
export async function lookAtDeployment(deps: LookDeps, deadlineMs: number): Promise<void> {
  const { sql, config } = deps;
  const ask = <T>(read: Promise<T>) => withDeadline(read, deadlineMs, "looking").catch(() => null);
  const [jobs, backups, gateways, alarms, lagging] = await Promise.all([
    ask(listJobSights(sql)),
    ask(listGatewayBackups(sql)),
    ask(listGatewaySights(sql)),
    ask(countOpenAlarms(sql)),
    ask(listLagging(sql, config.GATEWAY_ID)),
  ]);
  showJobs(deps, jobs ?? []);
  showBackups(deps, jobs ?? [], backups ?? []);
  showGateways(deps, gateways ?? []);
  const { deployment } = deps.metrics;
  deployment.alarms.reset();
  if (alarms)
    for (const severity of ["warning", "critical"] as const) deployment.alarms.set({ severity }, alarms[severity]);
  showLag(deps, lagging);
}

function showJobs({ metrics: { deployment } }: LookDeps, jobs: JobSight[]): void {
  const { jobOutcome, jobDuration, jobSuccessAge } = deployment;
  for (const gauge of [jobOutcome, jobDuration, jobSuccessAge]) gauge.reset();
  for (const { job, outcome, duration, successAge } of jobs) {
    for (const one of OUTCOMES) jobOutcome.set({ name: job, outcome: one }, Number(one === outcome));
    if (duration !== null) jobDuration.set({ name: job }, duration);
    if (successAge !== null) jobSuccessAge.set({ name: job }, successAge);
  }
}

/** The newest good run has the database; a gateway's folder is as old as the newest backup by the host that has it. */
function showBackups({ metrics }: LookDeps, jobs: JobSight[], backups: GatewayBackup[]): void {
  const { backupAge } = metrics.deployment;
  backupAge.reset();
  const ageOf = (name: string) => jobs.find(({ job }) => job === name)?.successAge ?? null;
  const [made, verified] = [ageOf("backup"), ageOf("verify-backup")];
  const folders = backups.map(({ since }) => (Date.now() - since.getTime()) / 1000);
  if (made !== null) backupAge.set({ step: "made" }, Math.max(made, ...folders));
  if (verified !== null) backupAge.set({ step: "verified" }, verified);
}

function showGateways({ metrics }: LookDeps, gateways: Awaited<ReturnType<typeof listGatewaySights>>): void {
  const { canaryAge, canaryResult, placementStopped, gatewaySeenAge } = metrics.deployment;
  for (const gauge of [canaryAge, canaryResult, placementStopped, gatewaySeenAge]) gauge.reset();
  for (const { id: gateway, ...seen } of gateways) {
    placementStopped.set({ gateway }, Number(seen.placementStopped));
    if (seen.seenAge !== null) gatewaySeenAge.set({ gateway }, seen.seenAge);
    if (seen.canaryAge !== null) canaryAge.set({ gateway }, seen.canaryAge);
    if (seen.canaryResult === null) continue;
    for (const result of RESULTS) canaryResult.set({ gateway, result }, Number(result === seen.canaryResult));
  }
}

/** No row says since when one lags: since it was first seen to, then, which is never too long. */
function showLag({ metrics }: LookDeps, lagging: string[] | null): void {
  const { look, laggingSince } = metrics;
  if (lagging === null) {
    for (const gauge of [look.generationLag, look.generationLagOldest]) gauge.remove();
    return;
  }
  const now = Date.now();
  for (const id of laggingSince.keys()) if (!lagging.includes(id)) laggingSince.delete(id);
  for (const id of lagging) if (!laggingSince.has(id)) laggingSince.set(id, now);
  look.generationLag.set(lagging.length);
  look.generationLagOldest.set((now - Math.min(now, ...laggingSince.values())) / 1000);
}
