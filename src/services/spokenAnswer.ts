import { AppError } from "../lib/errors.ts";
import type { InFlight } from "../lib/inFlight.ts";
import { cutLong, SentenceReader, type Piece } from "../lib/sentences.ts";
import { renderSpokenText } from "../lib/spokenText.ts";
import type { AudioEnd, ErrorFrame, ServerFrame } from "../protocol/chat.ts";
import { speakHeld, type HeldSpeech, type SpeakingDeps } from "./speaking.ts";
import { isRefused, renderRefusal, type Refused } from "./usage.ts";

/** So many sentences are being made at a time. */
const AT_ONCE = 2;

/** Where the sound goes: a device that may be slow. */
export interface Listener {
  userId: string;
  send(frame: ServerFrame): unknown;
  isSlow(): boolean;
}

/** Which answer is spoken, and by whom. */
export interface Wanted {
  turnId: string;
  /** Asked for by name. */
  voice: string | null;
  assistantVoice: string | null;
}

/** A sentence on its way: asked for → flowing (it is paid for) → made, or refused, or failed. */
interface Making {
  line: number;
  state: "asked" | "flowing" | "made" | "refused" | "failed";
  abort: AbortController;
  /** Begun when everything before was paid: what is refused now is refused. */
  last: boolean;
  dropped: boolean;
  held: HeldSpeech | null;
  sound: Buffer | null;
  refused: Refused | null;
  error: unknown;
}

/**
 * One answer that is spoken while it is written, sentence by sentence and in order, each as soon as it is whole. A
 * sentence is paid for when it is sent. Ends once: all was sent, or it was stopped, refused, or failed.
 */
export class SpokenAnswer {
  private readonly reader = new SentenceReader();
  /** What is to be said, as far as it is known; all before `next` has been begun. */
  private lines: string[] = [];
  private next = 0;
  private readonly ahead: Making[] = [];
  private whole = false;
  private begun = false;
  private over = false;
  private frames = 0;
  private seconds = 0;
  private paying: Promise<void> = Promise.resolve();

  constructor(
    private readonly deps: SpeakingDeps,
    private readonly inFlight: InFlight,
    private readonly listener: Listener,
    readonly wanted: Wanted,
    private readonly onOver: () => void,
  ) {}

  /** It is this answer's turn to be heard. */
  begin(): void {
    this.begun = true;
    this.goOn();
  }

  /** The answer grew. */
  grew(text: string): void {
    if (this.whole) return;
    this.lines.push(...this.reader.add(text).flatMap(wordsOf));
    this.goOn();
  }

  /** The answer as it is stored, which is what is said from here on, also where it differs. */
  ended(message: { content: string; finish: string | null }): void {
    if (this.whole || this.over) return;
    if (message.finish === "stopped") return this.end("stopped");
    if (message.finish === "error") return this.end("failed");
    this.whole = true;
    const reader = new SentenceReader();
    const lines = [...reader.add(message.content), ...reader.end()].flatMap(wordsOf);
    const differs = this.lines.findIndex((line, index) => line !== lines[index]);
    this.lines = lines;
    if (differs >= 0) this.takeBackFrom(differs);
    this.goOn();
  }

  /** The listener has room again. */
  readonly goOn = (): void => {
    while (this.begun && !this.over) {
      while (this.mayMake()) this.ahead.push(this.make(this.next++, false));
      const [first] = this.ahead;
      if (!first) return this.whole ? this.end("done") : undefined;
      if (first.state === "failed") return this.fail(first.error);
      if (first.state === "refused" && first.last) return this.end("limit", renderRefusal(this.deps, first.refused!));
      if (first.state === "refused") this.ahead[0] = this.make(first.line, true);
      if (first.state !== "made" || this.listener.isSlow()) return;
      this.ahead.shift();
      this.send(first);
    }
  };

  /** Silence at once; what was not sent is not paid. */
  stop(): void {
    this.end("stopped");
  }

  /** Nobody listens any more. */
  leave(): void {
    this.over = true;
    for (const making of this.ahead.splice(0)) this.drop(making);
  }

  fail(error: unknown): void {
    if (!(error instanceof AppError)) {
      const about = { err: error, turn_id: this.wanted.turnId, user_id: this.listener.userId };
      this.deps.log.warn(about, "voice failed");
    }
    this.end("failed", error instanceof AppError ? error : new AppError("voice_unavailable"));
  }

  /** The next one begins when the one before is reserved, so that only the last can be refused for what others hold. */
  private mayMake(): boolean {
    const before = this.ahead.at(-1);
    const ready = !before || before.state === "flowing" || before.state === "made";
    return ready && this.ahead.length < AT_ONCE && this.next < this.lines.length;
  }

  private make(line: number, last: boolean): Making {
    const abort = new AbortController();
    const making: Making = {
      line,
      state: "asked",
      abort,
      last,
      dropped: false,
      held: null,
      sound: null,
      refused: null,
      error: null,
    };
    this.inFlight.add("speaking", () => this.bring(making));
    return making;
  }

  private async bring(making: Making): Promise<void> {
    try {
      if (making.last) await this.paying;
      const answer = await this.ask(making);
      if (isRefused(answer)) {
        making.refused = answer;
        making.state = "refused";
      } else {
        making.held = answer;
        if (making.dropped) return void (await answer.settle("failed"));
        making.state = "flowing";
        this.goOn();
        making.sound = await answer.collect();
        making.state = "made";
      }
    } catch (error) {
      making.error = error;
      making.state = "failed";
    }
    if (!making.dropped) this.goOn();
  }

  private ask({ line, abort }: Making): Promise<HeldSpeech | Refused> {
    const { voice, assistantVoice } = this.wanted;
    const text = this.lines[line]!;
    const { userId } = this.listener;
    const { signal } = abort;
    const { traces } = this.deps;
    return traces.within(traces.ofTurn(this.wanted.turnId), () =>
      speakHeld(this.deps, { userId, text, voice, assistantVoice, format: "mp3", speed: 1, signal }),
    );
  }

  private send({ held, sound }: Making): void {
    const content = sound!.toString("base64");
    const { turnId } = this.wanted;
    this.listener.send({ type: "audio", turn_id: turnId, index: this.frames++, format: "mp3", content });
    // One after the other: whole seconds are charged for the answer, not for each sentence.
    this.paying = this.paying.then(async () => {
      const { durationSeconds } = await held!.settle("whole", this.seconds);
      this.seconds += durationSeconds;
    });
    this.inFlight.add("paying for speech", () => this.paying);
  }

  /** What was begun of lines that are not said after all. */
  private takeBackFrom(line: number): void {
    while (this.ahead.length > 0 && this.ahead.at(-1)!.line >= line) this.drop(this.ahead.pop()!);
    this.next = Math.min(this.next, line);
  }

  private drop(making: Making): void {
    making.dropped = true;
    making.abort.abort();
    const { held } = making;
    if (held) this.inFlight.add("giving speech back", () => held.settle("failed"));
  }

  private end(reason: AudioEnd, error?: AppError): void {
    if (this.over) return;
    this.leave();
    const turn_id = this.wanted.turnId;
    if (error) this.listener.send(renderError(error, turn_id));
    this.listener.send({ type: "audio_end", turn_id, frames: this.frames, reason });
    this.onOver();
  }
}

/** A piece as it is said, in parts that can be said in one go. */
function wordsOf(piece: Piece): string[] {
  return piece.code ? [] : cutLong(renderSpokenText(piece.text.trimStart()));
}

function renderError({ code, message, extras }: AppError, turnId: string): ErrorFrame {
  return { type: "error", code, message, turn_id: turnId, ...extras };
}
