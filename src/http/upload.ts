import type { Context, MiddlewareHandler } from "hono";
import { AppError } from "../lib/errors.ts";
import { isJson, parseJson, readBody, type Env, type UploadSpec } from "./env.ts";

const FORM_TYPE = /^multipart\/form-data\s*(;|$)/i;
/** The first parameter of this name, other ones unquoted in front of it: what a quoted one holds is no boundary. */
const BOUNDARY = /^[^;]*(?:;\s*(?!boundary=)[^\s;"]+\s*)*;\s*boundary=(?:"([^"]{1,200})"|([^\s;"]{1,200}))/i;
/** More parts than anybody sends by mistake. */
const MOST_PARTS = 16;

/** Finds the file in whatever form it comes; what it is must show in its bytes. */
export function takeUpload(spec: UploadSpec): MiddlewareHandler<Env> {
  return async (c, next) => {
    c.set("file", await readFile(c, spec));
    // What the file was wrapped in need not stay in memory while it is worked on.
    c.set("body", undefined);
    await next();
  };
}

async function readFile(c: Context<Env>, spec: UploadSpec): Promise<Uint8Array> {
  const type = c.req.header("content-type") ?? "";
  const bytes = await readBody(c);
  if (isJson(c)) {
    const body = parseJson(spec.json, new TextDecoder().decode(bytes));
    const decoded = Buffer.from(body[spec.field] as string, "base64");
    return new Uint8Array(decoded.buffer, decoded.byteOffset, decoded.byteLength);
  }
  if (FORM_TYPE.test(type)) return readForm(bytes, type, spec.formField);
  if (spec.typePattern.test(type)) return bytes;
  throw new AppError("unsupported_media_type", {}, spec.otherType);
}

async function readForm(bytes: Uint8Array, type: string, field: string): Promise<Uint8Array> {
  const form = await parseForm(bytes, type);
  const unknown = [...new Set(form.keys())].filter((name) => name !== field);
  const [file, second] = form.getAll(field);
  const faults = unknown.map((name) => ({ path: name.slice(0, 100), message: "unknown field" }));
  if (file === undefined) faults.push({ path: field, message: "a file is needed" });
  else if (typeof file === "string") faults.push({ path: field, message: "must be a file, with a file name" });
  if (second !== undefined) faults.push({ path: field, message: "one file only" });
  if (faults.length > 0 || !(file instanceof File)) throw new AppError("validation_failed", { details: faults });
  return new Uint8Array(await file.arrayBuffer());
}

// The platform reads it, and makes an object of every part: of half a million tiny ones it would make half a second.
async function parseForm(bytes: Uint8Array, type: string): ReturnType<Response["formData"]> {
  if (splitForm(bytes, type) === null) throw badForm("no boundary, or too many parts");
  try {
    return await new Response(bytes as Uint8Array<ArrayBuffer>, { headers: { "Content-Type": type } }).formData();
  } catch {
    throw badForm("not a form: a boundary or an end is missing");
  }
}

/**
 * A form's body without the boundary, which clients make anew at every try; null for what is no form, or for one with more
 * parts than anybody sends.
 */
export function splitForm(bytes: Uint8Array, type: string): Uint8Array[] | null {
  const match = FORM_TYPE.test(type) ? BOUNDARY.exec(type) : null;
  if (!match) return null;
  const boundary = `--${match[1] ?? match[2]}`;
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const parts: Uint8Array[] = [];
  let from = 0;
  for (let at = view.indexOf(boundary); at >= 0; at = view.indexOf(boundary, from)) {
    if (parts.length > MOST_PARTS) return null;
    parts.push(view.subarray(from, at));
    from = at + boundary.length;
  }
  return [...parts, view.subarray(from)];
}

function badForm(message: string): AppError {
  return new AppError("validation_failed", { details: [{ path: "", message }] });
}
