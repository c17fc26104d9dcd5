import { z } from "zod";

/** Fields that several bodies share. */

export const email = z.email().max(254).describe("E-mail address; compared without case");
export const password = z
  .string()
  .min(8)
  .max(256)
  // As it is hashed: eight code units may be four letters with their accents, or four emoji.
  .refine((value) => Array.from(value.normalize("NFKC")).length >= 8, "must have at least 8 characters")
  .describe("8 to 256 characters");
/** Postgres can't store it. */
export const withoutNul = [(value: string) => !value.includes("\u0000"), "must not contain NUL"] as const;
export const name = z
  .string()
  .trim()
  .min(1)
  .max(100)
  .refine(...withoutNul);
export const timezone = z
  .string()
  .min(1)
  .max(64)
  .refine(...withoutNul)
  .describe("IANA time zone, e.g. Europe/Berlin");
export const time = z.iso.datetime().describe("RFC 3339, UTC");
export const id = z.uuid();
