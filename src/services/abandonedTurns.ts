import { listAbandonedTurns, takeLostTurns, type Turn } from "../db/turns.ts";
import type { Deps } from "../deps.ts";
import { startLoop, type Loop } from "../lib/loop.ts";
import type { ChatHub } from "./chatHub.ts";
import { finishTurn, type Outcome } from "./conversations.ts";
import { tellTurnEnd, type Hearers } from "./turnEnd.ts";

const RESYNC_MS = 5_000;
/** Enough to end some turns; whoever dies meanwhile is followed by another. */
const LEASE_MS = 30_000;

const STOPPED: Outcome = { status: "stopped", text: "", usage: null };

/**
 * Ends what nobody else can: turns of a gateway that no process is connected to (its host is gone). Queued ones as their
 * own engine would, stopped or too long in the queue; running ones when a host may be away no longer: their budget and
 * that of the queue are over. Until then they are left to their engine, which may come back and knows what was answered.
 * So are the running ones of our own gateway: while it is away the engine takes over nothing.
 */
export function startAbandonedTurns(deps: Deps, hub: Hearers & Pick<ChatHub, "sentText">): Loop {
  const { sql, log, config, processId, clock, gateway } = deps;
  const { GATEWAY_ID: gatewayId, TURN_WAIT_MS: waitMs, TURN_TOTAL_MS } = config;
  const end = async (turn: Turn, owner: string | null, outcome: Outcome) => {
    const message = await finishTurn(deps, turn, owner, outcome).catch((err: unknown) => {
      // One that can't be ended keeps none of the others.
      log.warn({ err, turn_id: turn.id, gateway: turn.gatewayId }, "turn could not be ended; trying again");
      return null;
    });
    if (!message) return;
    log.warn(
      { turn_id: turn.id, gateway: turn.gatewayId, status: outcome.status },
      "ended a turn of a gateway that is away",
    );
    tellTurnEnd(deps, hub, turn, message, outcome);
  };
  const startedAt = clock.now();
  const afterMs = TURN_TOTAL_MS + waitMs;
  // A process that has just begun waits for its gateway as long as any other does: it may know the answer.
  const isOursLost = () => !gateway.isReady() && clock.now() - startedAt > afterMs;
  const failed = (text: string): Outcome => ({ status: "failed", text, code: "assistant_unavailable" });
  return startLoop({
    name: "abandoned turns",
    debounceMs: 100,
    maxWaitMs: 500,
    resyncMs: RESYNC_MS,
    backoffMs: 1_000,
    log,
    run: async () => {
      for (const turn of await listAbandonedTurns(sql, { gatewayId, waitMs }))
        await end(turn, null, turn.stopRequested ? STOPPED : failed(""));
      const taken = { but: isOursLost() ? null : gatewayId, owner: processId, leaseMs: LEASE_MS, afterMs };
      for (const turn of await takeLostTurns(sql, taken)) await end(turn, processId, failed(await hub.sentText(turn)));
    },
  });
}
