import { touchGateway } from "../db/gateways.ts";
import type { Deps } from "../deps.ts";
import { startLoop, type Loop } from "../lib/loop.ts";

const BEAT_MS = 15_000;

/** Says to the other processes that this one is connected to its gateway: new assistants go to gateways that are there. */
export function startGatewayBeat(deps: Pick<Deps, "sql" | "gateway" | "config" | "log">): Loop {
  const loop = startLoop({
    name: "gateway beat",
    debounceMs: 10,
    maxWaitMs: 100,
    resyncMs: BEAT_MS,
    backoffMs: 1_000,
    log: deps.log,
    run: async () => {
      if (deps.gateway.isReady()) await touchGateway(deps.sql, deps.config.GATEWAY_ID);
    },
  });
  deps.gateway.listen({ onReady: () => loop.wake() });
  return loop;
}
