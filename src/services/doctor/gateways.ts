import { lookAtGateway } from "../../clients/gatewayProbe.ts";
import { findGatewayState } from "../../db/deployment.ts";
import { sleep } from "../../lib/retry.ts";
import { NO_GATEWAY } from "../gatewayCare.ts";
import { INVARIANTS } from "../invariants.ts";
import { readUnit } from "../unitState.ts";
import { bad, NO_SYSTEMD, ok, onSystem, skip, warn, type Check, type Result, type SystemScene } from "./check.ts";

const RUNBOOK = "docs/runbooks/gateway-down.md";
const SLOW_MS = 2_000;
const CONNECT_MS = 8_000;
const SETTLE_MS = 5_000;

async function checkUnit({ deps: { config }, host, place }: SystemScene): Promise<Result> {
  if (!place.hasSystemd) return skip(NO_SYSTEMD);
  const unit = `reef-gateway@${config.GATEWAY_ID}.service`;
  const state = await readUnit(host, unit, ["ActiveState", "SubState", "NRestarts", "UnitFileState"]);
  if (!state) return skip(`${unit} is not of this machine`);
  const found = `${state.ActiveState} (${state.SubState}), ${state.NRestarts || 0} restart(s) by systemd`;
  if (state.ActiveState !== "active")
    return bad(found, `journalctl -u ${unit} -n 50; systemctl start ${unit} (${RUNBOOK})`);
  if (state.UnitFileState === "disabled") return warn(`${found}, but not enabled`, `systemctl enable ${unit}`);
  return ok(found);
}

async function checkRpc({ deps: { config } }: SystemScene): Promise<Result> {
  const gateway = { url: config.OPENCLAW_GATEWAY_URL, token: config.OPENCLAW_GATEWAY_TOKEN };
  const look = await lookAtGateway(gateway, CONNECT_MS);
  const restart = `journalctl -u reef-gateway@${config.GATEWAY_ID} -n 50; ${RUNBOOK}`;
  if (look.outcome === "refused")
    return bad(`it refuses us (${look.code})`, `is its token the one of reef.env? ${restart}`);
  if (look.outcome !== "answered")
    return bad(look.outcome === "silent" ? "it does not answer" : "nobody takes the connection", restart);
  const found = `answers in ${look.ms} ms`;
  return look.ms > SLOW_MS ? warn(`${found}: it is busy`, "top, and docs/scaling.md") : ok(found);
}

/** What the invariants say of the gateway's configuration; they know what it has to be. */
async function checkConfiguration({ deps }: SystemScene): Promise<Result> {
  const look = async () => {
    const its = INVARIANTS.filter(({ rule }) => rule === 4 || rule === 5);
    const tallies = await Promise.all(its.map((invariant) => invariant.check(deps, CONNECT_MS)));
    return its.filter((_, n) => tallies[n]!.violations > 0).map(({ id, sentence }) => `not so (${id}): ${sentence}`);
  };
  let wrong = await look();
  // One that is being applied is out of line for a moment.
  for (const until = Date.now() + SETTLE_MS; wrong.length > 0 && Date.now() < until; wrong = await look())
    await sleep(500);
  if (wrong.length > 0) return bad(wrong.join("; "), `systemctl restart reef-api@1 has it written anew; ${RUNBOOK}`);
  const { valid, applied } = await deps.gateway.readConfigStatus();
  if (!valid || !applied)
    return bad(
      valid ? "written, but not applied" : "it refuses the file",
      `journalctl -u reef-gateway@${deps.config.GATEWAY_ID}`,
    );
  return ok("valid, applied, and what the rows say");
}

async function checkWorkingSet({ deps: { sql, config } }: SystemScene): Promise<Result> {
  const state = await findGatewayState(sql, config.GATEWAY_ID);
  if (!state)
    return bad(
      `the gateway ${config.GATEWAY_ID} has no row`,
      "it gets one when an API process starts: systemctl start reef-api@1",
    );
  const found = `${state.awake} of ${config.GATEWAY_WORKING_SET} awake`;
  if (state.status !== "active") return warn(`${found}; the gateway is ${state.status}`, "docs/scaling.md");
  if (state.failed > 0)
    return warn(
      `${found}, ${state.failed} could not be woken`,
      "journalctl -u 'reef-api@*' | grep 'workspace could not'",
    );
  return ok(found);
}

async function checkCanary({ deps: { sql, config }, place }: SystemScene): Promise<Result> {
  const state = await findGatewayState(sql, config.GATEWAY_ID);
  const runbook = "docs/runbooks/canary-red.md";
  if (state?.canaryResult === "leak") return bad("one assistant could reach another's secrets", runbook);
  if (state?.placementStoppedReason)
    return bad(`no new assistants are placed: ${state.placementStoppedReason}`, runbook);
  if (!state?.canaryAt) {
    if (place.isTrial) return skip("a trial runs no timers");
    return warn("isolation was never tried", "systemctl start reef-run-canary.service");
  }
  const hours = Math.round((Date.now() - state.canaryAt.getTime()) / 360_000) / 10;
  if (state.canaryResult === "failed")
    return warn(`the last try, ${hours} h ago, told nothing`, "journalctl -u reef-run-canary");
  if (Date.now() - state.canaryAt.getTime() > config.CANARY_MAX_AGE_MS && !place.isTrial)
    return warn(`isolation was last proved ${hours} h ago`, "systemctl start reef-run-canary.service");
  return ok(`isolation proved ${hours} h ago`);
}

const ofGateway = (run: (scene: SystemScene) => Promise<Result>) => async (scene: SystemScene) =>
  scene.deps.config.GATEWAY_ID === NO_GATEWAY ? skip("this host has no gateway of its own") : run(scene);

export const GATEWAY: readonly Check[] = [
  onSystem("gateway.unit", ofGateway(checkUnit)),
  onSystem("gateway.rpc", ofGateway(checkRpc)),
  onSystem("gateway.configuration", ofGateway(checkConfiguration), { limitMs: 45_000 }),
  onSystem("gateway.working_set", ofGateway(checkWorkingSet)),
  onSystem("gateway.canary", ofGateway(checkCanary)),
];
