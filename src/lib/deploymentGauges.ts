import { Gauge, type Registry } from "prom-client";

/**
 * What Postgres knows of the whole deployment: every process says the same, so a rule takes the largest and never a sum.
 * What can't be known now is absent. Ages are seconds by the database's clock.
 */
export function createDeploymentGauges(registry: Registry) {
  const gauge = <const L extends string = never>(name: string, help: string, labelNames: L[] = []) =>
    new Gauge({ name, help: `${help} (of the deployment)`, labelNames, registers: [registry] });
  return {
    jobSuccessAge: gauge("reef_job_last_success_age_seconds", "How long ago a timer's job last went well", ["name"]),
    jobDuration: gauge("reef_job_last_duration_seconds", "How long its newest finished run took", ["name"]),
    jobOutcome: gauge(
      "reef_job_last_outcome",
      "1: how its newest run ended; running: it has not, or its process died",
      ["name", "outcome"],
    ),
    backupAge: gauge(
      "reef_backup_age_seconds",
      "How old the newest good backup is (of the gateway that is worst off), and the newest verification of one",
      ["step"],
    ),
    canaryAge: gauge("reef_canary_age_seconds", "How long ago the isolation canary ran on a gateway", ["gateway"]),
    canaryResult: gauge("reef_canary_result", "1: what the isolation canary found: ok, leak, failed", [
      "gateway",
      "result",
    ]),
    placementStopped: gauge("reef_placement_stopped", "1: no new assistants are placed on a gateway", ["gateway"]),
    gatewaySeenAge: gauge("reef_gateway_seen_age_seconds", "How long ago a gateway last lived by its rows", [
      "gateway",
    ]),
    alarms: gauge("reef_alarms_open", "Alarms that are not over", ["severity"]),
  };
}
