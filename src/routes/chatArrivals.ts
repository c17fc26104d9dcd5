import { z } from "zod";
import { AppError } from "../lib/errors.ts";
import { renderIssue } from "../http/env.ts";
import {
  clientFrameSchema,
  MAX_FRAME_BYTES,
  MAX_VOICE_FRAME_BYTES,
  type ClientFrame,
  type PlainFrame,
} from "../protocol/chat.ts";
import type { Voice, VoiceSlot } from "./voiceSlot.ts";

/** What has come on a socket, to be worked on when all before it was. */
export type Arrival =
  | { kind: "frame"; frame: PlainFrame }
  | { kind: "voice"; voice: Voice }
  | { kind: "refused"; error: AppError; clientId: string | undefined };

/** Reads what has come. "too_big": nobody may send so much. Null: there is nothing to do, or the sound is still to come. */
export function readArrival(slot: VoiceSlot, raw: string | Buffer): Arrival | "too_big" | null {
  return typeof raw === "string" ? readText(slot, raw) : readSound(slot, raw);
}

function readText(slot: VoiceSlot, raw: string): Arrival | "too_big" | null {
  const bytes = Buffer.byteLength(raw);
  if (bytes > MAX_VOICE_FRAME_BYTES || (bytes > MAX_FRAME_BYTES && !mayBeVoice(raw))) return "too_big";
  const json = parseJson(raw);
  const { type, client_id: clientId } = headSchema.safeParse(json).data ?? {};
  if (bytes > MAX_FRAME_BYTES && type !== "voice") return "too_big";
  const frame = json instanceof AppError ? json : parseFrame(json);
  if (frame instanceof AppError) return { kind: "refused", error: frame, clientId };
  return frame.type === "voice" ? arrivalOf(slot.offer(frame), clientId) : { kind: "frame", frame };
}

function readSound(slot: VoiceSlot, raw: Buffer): Arrival | "too_big" | null {
  const received = slot.receive(raw);
  if (received !== "unexpected") return received && arrivalOf(received.voice, received.frame.client_id);
  if (raw.length > MAX_FRAME_BYTES) return "too_big";
  const error = new AppError("invalid_frame", {}, "A binary frame is the sound that a frame of type voice announced.");
  return { kind: "refused", error, clientId: undefined };
}

function arrivalOf(voice: Voice | AppError | null, clientId: string | undefined): Arrival | null {
  if (voice === null) return null;
  return voice instanceof AppError ? { kind: "refused", error: voice, clientId } : { kind: "voice", voice };
}

/** Names the refused message also where its frame is not valid. */
const headSchema = z.object({ type: z.unknown(), client_id: z.uuid().optional().catch(undefined) });

/** More quotation marks and brackets than a voice has, also where its format and its voice are nothing else. */
const MAX_VOICE_MARKS = 150;

/** Before it is read: a megabyte of small values takes a hundred milliseconds, for which everybody waits. */
function mayBeVoice(raw: string): boolean {
  let marks = 0;
  for (const _ of raw.matchAll(/["[{]/g)) if (++marks > MAX_VOICE_MARKS) return false;
  return true;
}

function parseJson(raw: string): unknown {
  try {
    return JSON.parse(raw);
  } catch {
    return new AppError("invalid_frame", {}, "The frame is not valid JSON.");
  }
}

function parseFrame(json: unknown): ClientFrame | AppError {
  const result = clientFrameSchema.safeParse(json);
  if (result.success) return result.data;
  const { issues } = result.error;
  const inContent = (code: string) => issues.some((issue) => issue.code === code && issue.path[0] === "content");
  const code = inContent("too_big") ? "message_too_long" : inContent("custom") ? "validation_failed" : "invalid_frame";
  return new AppError(code, { details: issues.flatMap(renderIssue) });
}
