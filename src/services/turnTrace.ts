import type { ClaimedTurn, Turn } from "../db/turns.ts";
import type { Deps } from "../deps.ts";
import { secondsSince } from "../lib/ids.ts";
import { nameOf, type Span, type SpanAttributes } from "../lib/trace.ts";
import type { Outcome } from "./conversations.ts";

type TurnTraceDeps = Pick<Deps, "traces" | "metrics" | "processId">;

/** Counts and tells a turn that has ended, once: by whoever stored its end. */
export function noteTurnEnd(
  { metrics, traces }: TurnTraceDeps,
  turn: Pick<Turn, "id" | "assistantId" | "userId" | "gatewayId">,
  outcome: Outcome,
): void {
  const seconds = secondsSince(turn.id);
  const code = outcome.status === "failed" ? outcome.code : "none";
  metrics.turn.observe({ status: outcome.status }, seconds);
  metrics.turnsEnded.inc({ outcome: outcome.status, code });
  if (!traces.isOn) return;
  const endMs = Date.now();
  const attributes = {
    ...idsOf(turn),
    "reef.outcome": outcome.status,
    "error.type": code === "none" ? undefined : code,
  };
  traces.tellTurn(turn.id, { startMs: endMs - seconds * 1000, endMs, attributes, failed: code !== "none" });
}

/** One process's part of a turn's trace: from the claim until it leaves the turn. */
export class TurnTrace {
  private readonly startMs = Date.now();
  private firstTextMs: number | null = null;
  private sentMs: number | null = null;

  constructor(
    private readonly deps: TurnTraceDeps,
    private readonly turn: ClaimedTurn,
  ) {
    if (turn.attempts === 1)
      this.add({ name: "turn queued", startMs: this.startMs - secondsSince(turn.id) * 1000, endMs: this.startMs });
  }

  /** Sends the turn to the gateway. */
  async sending<T extends string>(send: () => Promise<T>): Promise<T> {
    const startMs = Date.now();
    const told = (attributes: SpanAttributes, failed = false) =>
      this.add({ name: "gateway send", kind: "client", startMs, endMs: Date.now(), attributes, failed });
    try {
      const status = await send();
      this.sentMs ??= Date.now();
      told({ "reef.status": status });
      return status;
    } catch (error) {
      told({ "error.type": nameOf(error) }, true);
      throw error;
    }
  }

  /** The model has begun to answer. */
  firstText(): void {
    if (this.firstTextMs !== null) return;
    this.firstTextMs = Date.now();
    this.add({
      name: "gateway first text",
      kind: "client",
      startMs: this.sentMs ?? this.startMs,
      endMs: this.firstTextMs,
    });
  }

  /** This process has nothing more to do with the turn. */
  left(): void {
    const endMs = Date.now();
    if (this.firstTextMs !== null)
      this.add({ name: "gateway answer", kind: "client", startMs: this.firstTextMs, endMs });
    this.add({ name: "turn attempt", startMs: this.startMs, endMs });
  }

  private add(span: Pick<Span, "name" | "startMs" | "endMs"> & Partial<Span>): void {
    const { traces, processId } = this.deps;
    if (!traces.isOn) return;
    const attributes = {
      ...idsOf(this.turn),
      "reef.attempt": this.turn.attempts,
      "reef.process_id": processId,
      ...span.attributes,
    };
    traces.ofTurn(this.turn.id).add({ kind: "internal", ...span, attributes });
  }
}

function idsOf(turn: Pick<Turn, "id" | "assistantId" | "userId" | "gatewayId">): SpanAttributes {
  return {
    "reef.turn_id": turn.id,
    "reef.assistant_id": turn.assistantId,
    "reef.user_id": turn.userId,
    "reef.gateway": turn.gatewayId,
  };
}
