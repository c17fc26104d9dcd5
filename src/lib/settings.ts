import { createPrivateKey } from "node:crypto";
import { z } from "zod";

/** How an environment variable is read, and the line that documents it in `.env.example`. */
export const text = (description: string) => z.string().trim().min(1).describe(description);
export const url = (description: string, protocols: RegExp) =>
  z.url({ protocol: protocols }).refine(isDecodable, "must be percent-encoded").describe(description);
export const integer = (description: string, min: number, max: number) =>
  z.coerce.number().int().min(min).max(max).describe(description);
export const flag = (description: string) =>
  z
    .enum(["true", "false", "1", "0"])
    .transform((value) => value === "true" || value === "1")
    .describe(description);
export const list = (description: string) =>
  z
    .string()
    .transform((value) =>
      value
        .split(",")
        .map((item) => item.trim())
        .filter((item) => item !== ""),
    )
    .describe(description);

/** Exactly as a browser sends it: a path, a slash at the end or a star would match nothing, or everything. */
const isOrigin = (text: string) =>
  /^[a-z][a-z0-9+.-]*:\/\/[a-z0-9.-]+(:\d+)?$/.test(text) &&
  // URL knows no origin of an app's own scheme (capacitor://localhost), but leaves out what browsers leave out elsewhere.
  (!text.startsWith("http") || URL.parse(text)?.origin === text);
export const origins = (description: string) =>
  list(description)
    .refine((items) => items.every(isOrigin), "must be origins like https://app.example.com, without a path")
    .describe(description);

// The clients decode user name and password, and would throw a sentence that names no variable.
function isDecodable(value: string): boolean {
  try {
    return decodeURIComponent(value) !== "";
  } catch {
    return false;
  }
}

export function isAppleKey(pem: string): boolean {
  try {
    return createPrivateKey(pem).asymmetricKeyDetails?.namedCurve === "prime256v1";
  } catch {
    return false;
  }
}
