import type { FakeAnswer } from "../fakes/gateway.ts";
import type { Answer } from "../fakes/openai.ts";

/** What the model says, part by part; each part waits behind a gate of its own. The same each time it is asked. */
export class Script {
  private readonly gates: { opened: Promise<void>; open: () => void }[];

  constructor(readonly parts: string[]) {
    this.gates = parts.map(() => {
      const { promise: opened, resolve: open } = Promise.withResolvers<void>();
      return { opened, open };
    });
  }

  /** The whole answer, or its first parts, as a device shows it: a model message has no white space at its edges. */
  text(parts = this.parts.length): string {
    return this.parts.slice(0, parts).join("").trimEnd();
  }

  /** Lets the model say its first `parts` parts. */
  open(parts = this.parts.length): void {
    for (const gate of this.gates.slice(0, parts)) gate.open();
  }

  /** As the fake gateway's model. */
  get fakeAnswer(): FakeAnswer {
    const { parts, gates } = this;
    return async function* () {
      for (const [index, text] of parts.entries()) {
        yield { wait: gates[index]!.opened };
        yield { text };
      }
    };
  }

  /** As the model behind the real gateway. */
  get modelAnswer(): Answer {
    const { parts, gates } = this;
    return async function* () {
      for (const [index, text] of parts.entries()) {
        await gates[index]!.opened;
        yield { text };
      }
    };
  }
}
