import { z } from "zod";
import { withoutNul } from "./fields.ts";

/** The JSON bodies of /api/voice. */

/** Bodies of the voice routes, in whatever form. */
export const VOICE_BODY_BYTES = 25 * 1024 * 1024;
export const SPEAK_MAX_CHARACTERS = 4096;
export const SPEECH_FORMATS = ["mp3", "opus", "aac", "flac", "wav", "pcm"] as const;
export type SpeechFormat = (typeof SPEECH_FORMATS)[number];
/** Content types of bare speech. */
export const SPEECH_TYPES: Record<SpeechFormat, string> = {
  mp3: "audio/mpeg",
  opus: "audio/ogg",
  aac: "audio/aac",
  flac: "audio/flac",
  wav: "audio/wav",
  pcm: "audio/pcm",
};

export const transcribeBody = z.strictObject({
  audio: z.base64().min(1).describe("The sound file, base64"),
  format: z.string().max(40).optional().describe("As the client calls it; what counts is found in the bytes"),
});
export const transcriptSchema = z.object({
  text: z.string().describe('What was said; "" for silence, which is not charged'),
  duration_seconds: z.number(),
});

export const speakBody = z.strictObject({
  text: z
    .string()
    .min(1)
    .max(SPEAK_MAX_CHARACTERS)
    .refine(...withoutNul)
    .describe("Markdown is spoken by its words; code blocks are left out"),
  voice: z.string().min(1).max(30).optional().describe("One of the plan's voices; by default the assistant's"),
  agent_id: z.string().min(1).max(60).optional().describe("The assistant that speaks"),
  format: z
    .enum(SPEECH_FORMATS)
    .optional()
    .describe("By default the one that Accept names, else mp3. opus: in Ogg; pcm: 24 kHz, 16 bit, mono, no header"),
  speed: z.number().min(0.25).max(4).default(1),
});
export const spokenSchema = z.object({
  audio: z.string().describe("The sound, base64"),
  format: z.enum(SPEECH_FORMATS),
  character_count: z.number().int().describe("What was spoken, and charged, after Markdown was taken out"),
  duration_seconds: z.number(),
});
