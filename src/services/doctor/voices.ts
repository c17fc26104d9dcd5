import type { SpeechProvider } from "../../clients/speech.ts";
import { AppError } from "../../lib/errors.ts";
import { bad, ok, onSystem, skip, type Check, type Result, type SystemScene } from "./check.ts";

const TEXT = "The harbour is quiet tonight, and the lamps are lit.";
const ANSWER_MS = 60_000;
const LEAST_BYTES = 1_000;
const NO_KEY = "no OPENAI_API_KEY in these settings";
const FIX = "is the provider's key right and paid for? docs/voice.md";

/** The voice speaks a sentence of our own. */
async function speak(speech: SpeechProvider): Promise<Uint8Array> {
  const signal = AbortSignal.timeout(ANSWER_MS);
  const sound = await speech.speak({ text: TEXT, voice: "nova", model: "tts-1", format: "mp3", speed: 1, signal });
  return new Uint8Array(await new Response(sound).arrayBuffer());
}

async function withProvider(
  { deps }: SystemScene,
  judge: (speech: SpeechProvider) => Promise<Result>,
): Promise<Result> {
  if (!deps.speech) return skip(NO_KEY);
  try {
    return await judge(deps.speech);
  } catch (error) {
    if (error instanceof AppError) return bad(`the provider fails (${error.code})`, FIX);
    throw error;
  }
}

const traits = { isCostly: true, limitMs: 2 * ANSWER_MS };

export const VOICE: readonly Check[] = [
  onSystem(
    "voice.speech",
    (scene) =>
      withProvider(scene, async (speech) => {
        const { length } = await speak(speech);
        return length >= LEAST_BYTES ? ok(`${length} bytes of mp3`) : bad(`only ${length} bytes came`, FIX);
      }),
    traits,
  ),
  onSystem(
    "voice.transcription",
    (scene) =>
      withProvider(scene, async (speech) => {
        // What it hears is what it has just said: nobody's recording is needed.
        const bytes = await speak(speech);
        const signal = AbortSignal.timeout(ANSWER_MS);
        const heard = await speech.transcribe({ bytes, fileName: "doctor.mp3", mediaType: "audio/mpeg", signal });
        const words = heard.text.split(/\s+/).filter((word) => word !== "").length;
        return words > 0
          ? ok(`${words} word(s) heard of what was spoken`)
          : bad("it heard nothing of what was spoken", FIX);
      }),
    traits,
  ),
];
