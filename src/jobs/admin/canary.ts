import { listCanaries, type Canary } from "../../db/canary.ts";
import { canaryJob, clearCanaryLeak } from "../../services/canary.ts";
import { runJob } from "../../services/jobs.ts";
import { showTime, takeWords, type Command } from "./command.ts";

/** `npm run admin -- canary …`: whether the assistants of a gateway are kept apart. */
export const canaryCommands: Record<string, Command> = {
  "canary status": {
    usage: "canary status",
    summary: "what the isolation canary found on each gateway",
    help: `A line for each gateway: what the last run found, when, when it was last green, and why no new assistants are placed on
it, if so; below it what leaked. Exit code: 0 all are green, 1 some are not.`,
    read(words) {
      takeWords(words);
      return async (deps) => {
        const canaries = await listCanaries(deps.sql);
        for (const canary of canaries) console.log(renderCanary(canary));
        return canaries.every(isGreen) ? null : "Not every gateway is green and open for new assistants.";
      };
    },
  },
  "canary run": {
    usage: "canary run",
    summary: "runs it now on the gateway of GATEWAY_ID",
    help: `Does what the timer does every hour: tries everything to get from one of two agents of the operator's to the other, to
the host and to the gateway, with a scripted model. Nobody is charged. Takes a quarter of a minute.
Exit code: 0 green, 1 a leak, 2 it could not be carried out.`,
    read(words) {
      takeWords(words);
      return async (deps) => {
        console.error("admin: the canary runs; a quarter of a minute …");
        const { outcome, summary } = await runJob(deps, canaryJob);
        const canary = (await listCanaries(deps.sql)).find(({ gatewayId }) => gatewayId === deps.config.GATEWAY_ID);
        if (canary) console.log(renderCanary(canary));
        if (outcome === "skipped" || canary?.result === "failed") return { code: 2, sentence: `${summary}.` };
        return canary?.result === "ok" ? null : `${summary}.`;
      };
    },
  },
  "canary clear": {
    usage: "canary clear GATEWAY",
    summary: "places new assistants there again, after a leak was mended",
    help: `A leak stops new placements until somebody has looked into it. This allows them again and ends the alarm. Only after a
green run ("canary run"). Audited.`,
    read(words) {
      const [gatewayId = ""] = takeWords(words, "GATEWAY");
      return async (deps, person) => {
        const refused = await clearCanaryLeak(deps, person, gatewayId);
        if (refused === null) console.error(`admin: new assistants are placed on ${gatewayId} again.`);
        return refused;
      };
    },
  },
};

const isGreen = ({ result, placementStoppedReason }: Canary) => result === "ok" && placementStoppedReason === null;

function renderCanary({ gatewayId, result, at, greenAt, leaks, placementStoppedReason }: Canary): string {
  const placing = placementStoppedReason === null ? "open" : `closed (${placementStoppedReason})`;
  const line = `${gatewayId}  ${result ?? "never run"}  run ${showTime(at)}  green ${showTime(greenAt)}  ${placing}`;
  return [line, ...leaks.map((leak) => `  leak  ${JSON.stringify(leak)}`)].join("\n");
}
