import type { Clock } from "../lib/clock.ts";
import { AppError } from "../lib/errors.ts";
import type { Hold, MemoryBudget } from "../lib/memoryBudget.ts";
import type { VoiceFrame } from "../protocol/chat.ts";

/** A voice that is whole. */
export interface Voice {
  clientId: string;
  bytes: Buffer;
  speak: boolean;
  /** Who is to speak, where that was asked for. */
  voice: string | null;
  /** Stopped while it was listened to. */
  stopped: boolean;
}

/** As long as a silent client is given at most: its frame would have come by then. */
const ANNOUNCED_MS = 60_000;

/**
 * The one voice that a socket may have in work: a frame with its sound, or a frame that announces it and the binary frame
 * after that. Decides as frames arrive, so that no more sound is held than is listened to.
 */
export class VoiceSlot {
  /** `voice` null: what it announced was refused, or is in work; its sound is taken without a word. */
  private announced: { frame: VoiceFrame | null; atMs: number } | null = null;
  private working: Voice | null = null;
  private held: Hold | null = null;

  /** `budget`: what sound the process may hold at a time, until it was listened to; of that nobody more than half. */
  constructor(
    private readonly budget: MemoryBudget,
    private readonly userId: string,
    private readonly clock: Clock,
  ) {}

  /** A frame of type voice. Null: there is nothing to do, or not yet. */
  offer(frame: VoiceFrame): Voice | AppError | null {
    const busy = this.working !== null;
    const announces = frame.audio === undefined;
    this.announced = announces ? { frame: busy ? null : frame, atMs: this.clock.now() } : null;
    // The one in work answers for it.
    if (this.working?.clientId === frame.client_id) return null;
    if (busy) return new AppError("too_many_frames", { retry_after: 2 }, "One voice at a time; wait for its answer.");
    return announces ? null : this.take(frame, Buffer.from(frame.audio!, "base64"));
  }

  /** A binary frame; "unexpected": nobody announced it. */
  receive(bytes: Buffer): { frame: VoiceFrame; voice: Voice | AppError } | "unexpected" | null {
    const { announced } = this;
    this.announced = null;
    if (!announced || this.clock.now() - announced.atMs > ANNOUNCED_MS) return "unexpected";
    const { frame } = announced;
    return frame && { frame, voice: this.take(frame, bytes) };
  }

  /** The answer to what is being listened to, if anything, is not wanted. */
  stop(): void {
    if (this.working) this.working.stopped = true;
  }

  /** It was listened to. */
  done(): void {
    this.held?.release();
    this.working = null;
  }

  private take({ client_id: clientId, speak = false, voice }: VoiceFrame, bytes: Buffer): Voice | AppError {
    if (bytes.length === 0) return new AppError("unsupported_audio");
    this.held = this.budget.hold(this.userId);
    if (!this.held.grow(bytes.length)) return new AppError("service_unavailable", { retry_after: 2 });
    this.working = { clientId, bytes, speak, voice: (speak && voice) || null, stopped: false };
    return this.working;
  }
}
