import { canaryJob } from "../services/canary.ts";
import { runTimer } from "./runTimer.ts";

const help = `Proves that the assistants of a gateway can't get at each other, the host or the gateway (docs/canary.md).

  scripts/bun src/jobs/runCanary.ts

Tries the hostile script between two agents of the operator's on the gateway of GATEWAY_ID, with a scripted model that it
serves at CANARY_MODEL_URL meanwhile: no provider is asked, nobody is charged. It takes a quarter of a minute, and needs a
running API process, which configures the pair. A leak stops new placements on the gateway and raises an alarm of its own.
Exit code: 0 carried out (the line says what was found), 1 it could not be, for the second time, 75 the database does not
answer, 78 misconfigured.`;

await runTimer(canaryJob, help);
