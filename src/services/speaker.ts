import { AppError } from "../lib/errors.ts";
import type { InFlight } from "../lib/inFlight.ts";
import type { ServerFrame } from "../protocol/chat.ts";
import type { Sent } from "./chatRooms.ts";
import type { SpeakingDeps } from "./speaking.ts";
import { SpokenAnswer, type Listener, type Wanted } from "./spokenAnswer.ts";

/**
 * The voice of one device: speaks the answers that it asked to hear, one after the other. It listens to the frames that
 * the device is sent, whose text has neither gap nor overlap, whichever process answers.
 */
export class Speaker {
  /** Those that have not ended, in the order in which they are heard. */
  private answers: SpokenAnswer[] = [];
  /** What is spoken once is not spoken again. */
  private readonly known = new Set<string>();
  private closed = false;

  constructor(
    private readonly deps: SpeakingDeps,
    private readonly inFlight: InFlight,
    private readonly listener: Listener,
  ) {}

  /** Speaks an answer from its start. `sent`: what the device was sent of it before now. */
  speak(wanted: Wanted, sent: Sent): void {
    if (this.closed || this.known.has(wanted.turnId)) return;
    this.known.add(wanted.turnId);
    const answer = new SpokenAnswer(this.deps, this.inFlight, this.listener, wanted, () => this.ended(answer));
    this.answers.push(answer);
    this.guard(answer, () => {
      answer.grew(sent.text);
      if (sent.answer) answer.ended(sent.answer);
      if (this.answers[0] === answer) answer.begin();
    });
  }

  /** A frame that the device was sent. */
  heard(frame: ServerFrame): void {
    if (this.answers.length === 0 || (frame.type !== "chunk" && frame.type !== "message")) return;
    const answer = this.answers.find(({ wanted }) => wanted.turnId === frame.turn_id);
    if (!answer) return;
    if (frame.type === "chunk") this.guard(answer, () => answer.grew(frame.content));
    else if (frame.role === "assistant") this.guard(answer, () => answer.ended(frame));
  }

  /** Silences an answer, or all, whether they are still written or not. */
  stop(turnId: string | null): void {
    // The last one first, or each would begin when the one before it has ended.
    const meant = this.answers.filter(({ wanted }) => turnId === null || wanted.turnId === turnId);
    for (const answer of meant.toReversed()) answer.stop();
  }

  /** The device has room again. */
  drained(): void {
    this.answers[0]?.goOn();
  }

  close(): void {
    this.closed = true;
    for (const answer of this.answers.splice(0)) answer.leave();
  }

  private ended(answer: SpokenAnswer): void {
    this.answers = this.answers.filter((other) => other !== answer);
    this.answers[0]?.begin();
  }

  /** The text must reach the device whatever the voice makes of it. */
  private guard(answer: SpokenAnswer, work: () => void): void {
    try {
      work();
    } catch (error) {
      this.deps.log.error(
        { err: error, turn_id: answer.wanted.turnId, user_id: this.listener.userId },
        "an answer could not be spoken",
      );
      answer.fail(new AppError("voice_unavailable"));
    }
  }
}
