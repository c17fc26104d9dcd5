import { z } from "zod";
import type { Deps } from "../deps.ts";
import type { Timer } from "../lib/clock.ts";
import type { ServerFrame } from "../protocol/chat.ts";
import type { RunningTurn } from "./chatRooms.ts";

type BusDeps = Pick<Deps, "redis" | "subscriber" | "clock" | "config" | "processId">;

/** Growing text waits this long for more of it, or of other answers, on its way to other processes. */
const GATHER_MS = 10;

/** What processes tell each other on `chat:{assistantId}`; messages themselves go by Postgres. */
const busSchema = z.discriminatedUnion("kind", [
  z.object({
    from: z.string(),
    kind: z.literal("text"),
    turn: z.object({ id: z.string(), seq: z.number(), text: z.string(), retrying: z.string().nullable() }),
    offset: z.number(),
  }),
  z.object({
    from: z.string(),
    kind: z.literal("frame"),
    frame: z.looseObject({ type: z.string() }),
    except: z.string().optional(),
  }),
]);
type BusMessage = z.infer<typeof busSchema>;
type Outgoing = BusMessage extends infer M ? (M extends BusMessage ? Omit<M, "from"> : never) : never;

/** A turn that is being answered, and where its conversation is. */
export type TurnKey = { assistantId: string; id: string; seq: number };
/** An answer as it is now; `offset` (UTF-16 units): what is new of it begins there. */
export type GrownText = { text: string; offset: number; retrying: string | null };

export interface BusListener {
  text(assistantId: string, heard: { turn: RunningTurn; offset: number }): void;
  frame(assistantId: string, frame: ServerFrame, except: string | undefined): void;
  /** What was said meanwhile is lost. */
  gap(): void;
}

/** Carries frames and growing text between the processes, through Redis. Nothing is promised: who listens reads the rows. */
export class ChatBus {
  private readonly grown = new Map<string, GrownText & { turn: TurnKey }>();
  private readonly channels = new Set<string>();
  private readonly prefix: string;
  /** The sender stands first: what Redis sends back of our own is known by its head and not parsed. */
  private readonly ownHead: string;
  private flushing: Timer | undefined;

  constructor(
    private readonly deps: BusDeps,
    private readonly listener: BusListener,
  ) {
    this.prefix = `${deps.config.REDIS_PREFIX}chat:`;
    this.ownHead = JSON.stringify({ from: deps.processId }).slice(0, -1);
    deps.subscriber.on("message", (channel: string, payload: string) => this.hear(channel, payload));
    deps.subscriber.on("ready", () => {
      for (const channel of this.channels) deps.subscriber.subscribe(channel).catch(() => 0);
      listener.gap();
    });
  }

  subscribe(assistantId: string): void {
    this.channels.add(this.prefix + assistantId);
    this.deps.subscriber.subscribe(this.prefix + assistantId).catch(() => 0);
  }

  unsubscribe(assistantId: string): void {
    this.channels.delete(this.prefix + assistantId);
    this.deps.subscriber.unsubscribe(this.prefix + assistantId).catch(() => 0);
  }

  sendFrame(assistantId: string, frame: ServerFrame, except: string | undefined): void {
    const message = { kind: "frame" as const, frame: { ...frame }, ...(except === undefined ? {} : { except }) };
    this.deps.redis.publish(this.prefix + assistantId, this.render(message)).catch(() => 0);
  }

  sendText(turn: TurnKey, { text, offset, retrying }: GrownText): void {
    const from = Math.min(offset, this.grown.get(turn.id)?.offset ?? offset);
    this.grown.set(turn.id, { turn, text, offset: from, retrying });
    this.flushing ??= this.deps.clock.setTimeout(() => this.flush(), GATHER_MS);
  }

  close(): void {
    this.deps.clock.clearTimeout(this.flushing);
    this.flush();
  }

  // All that has grown since the last time, in one write.
  private flush(): void {
    this.flushing = undefined;
    if (this.grown.size === 0) return;
    const pipeline = this.deps.redis.pipeline();
    for (const { turn, text, offset, retrying } of this.grown.values()) {
      const fresh = { id: turn.id, seq: turn.seq, text: text.slice(offset), retrying };
      pipeline.publish(this.prefix + turn.assistantId, this.render({ kind: "text", turn: fresh, offset }));
    }
    this.grown.clear();
    pipeline.exec().catch(() => null);
  }

  private hear(channel: string, payload: string): void {
    if (payload.startsWith(this.ownHead)) return;
    const message = busSchema.safeParse(parseJson(payload)).data;
    if (!message) return;
    const assistantId = channel.slice(this.prefix.length);
    if (message.kind === "text") this.listener.text(assistantId, message);
    else this.listener.frame(assistantId, message.frame as unknown as ServerFrame, message.except);
  }

  private render(message: Outgoing): string {
    return JSON.stringify({ from: this.deps.processId, ...message });
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
