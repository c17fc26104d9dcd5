import type { Config } from "../config.ts";
import { traced, type Traces } from "../lib/trace.ts";
import type { SpeechProvider } from "./speech.ts";

/** The same provider, its calls told as parts of what they are made for; a speech until its first bytes. */
export function traceSpeech(
  provider: SpeechProvider | null,
  traces: Traces,
  { TRANSCRIPTION_MODEL }: Pick<Config, "TRANSCRIPTION_MODEL">,
): SpeechProvider | null {
  if (!provider || !traces.isOn) return provider;
  const call = (name: string, attributes: Record<string, string | number>) =>
    ({ name, kind: "client", attributes }) as const;
  return {
    transcribe: (input) =>
      traced(
        traces,
        call("transcribe", { "gen_ai.request.model": TRANSCRIPTION_MODEL, "reef.bytes": input.bytes.length }),
        () => provider.transcribe(input),
      ),
    speak: (input) =>
      traced(traces, call("speak", { "gen_ai.request.model": input.model, "reef.format": input.format }), () =>
        provider.speak(input),
      ),
  };
}
