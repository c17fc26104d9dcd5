/** A part of a Markdown text that can be spoken by itself. Code and formulas that stand alone are not spoken. */
export interface Piece {
  text: string;
  code: boolean;
}

/** Nothing longer is waited for, or spoken in one go. */
export const SENTENCE_MAX_CHARACTERS = 1000;

const segmenter = new Intl.Segmenter("en", { granularity: "sentence" });
/** What the segmenter must have seen after a sentence to be sure that it ended: "etc. (5 km" goes on, "End. (5 Km" does not. */
const DECISIVE = /[\p{L}\n.!?。！？]/u;
/** Marks and brackets that close right behind a full stop, and the white space after them. */
const CLOSERS = /^[*_~`"'\p{Pe}\p{Pf}]+[^\S\n]*(?:\n|(?<=\s))/u;
const LINE_PREFIX = String.raw`^[ \t]*(?:(?:[-*+>]|\d{1,9}[.)])[ \t]+)?`;
const FENCE = new RegExp(String.raw`${LINE_PREFIX}(${"`"}{3,}(?=[^${"`"}]*$)|~{3,})`);
const MAYBE_FENCE = new RegExp(String.raw`${LINE_PREFIX}(?:${"`"}+$|~+$|${"`"}{3}|~{3})`);
/** A formula over several lines, from its opening marks to its closing ones. */
const FORMULA = /^[ \t]*(\$\$|\\\[)/;
const MAYBE_FORMULA = /^[ \t]*(?:\$\$?$|\\$|\$\$|\\\[)/;
const LIST_ITEM = /^[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]/;
/** Words that a full stop does not end, besides single letters and the numbers of a list or a day. */
const ABBREVIATIONS =
  /(?<![\p{L}\p{N}_=/&-])(?:\p{L}|Dr|Mr|Mrs|Ms|Prof|St|Jr|Sr|vs|Nr|Abb|Fig|ca|bzw|evtl|ggf|inkl|zzgl|vgl|sog|Mio|Mrd|Tel|Str|Hr|Mme|approx|(?<![.,:])\d{1,2})\.$/iu;

/**
 * Reads a Markdown text that is still being written, sentence by sentence. A sentence is whole when something follows it
 * or its line ends; a block of code, a formula or a table when the line after it begins. The pieces joined are the text, and they are
 * the same however it arrives.
 */
export class SentenceReader {
  private pending = "";
  private atLineStart = true;
  private inList = false;
  private afterBlank = true;

  /** The pieces that are whole by now. */
  add(text: string): Piece[] {
    this.pending += text;
    return this.take(false);
  }

  /** The rest: nothing more comes. */
  end(): Piece[] {
    return this.take(true);
  }

  private take(ended: boolean): Piece[] {
    const pieces: Piece[] = [];
    while (this.pending !== "") {
      const found = this.atLineStart ? this.measureLine(ended) : sentence(this.pending, ended);
      if (!found) break;
      const text = this.pending.slice(0, found.length);
      this.pending = this.pending.slice(found.length);
      if (this.atLineStart) this.remember(text, found.code);
      this.atLineStart = text.endsWith("\n");
      pieces.push({ text, code: found.code });
    }
    return pieces;
  }

  private measureLine(ended: boolean): Found | null {
    const { pending } = this;
    const line = lineAt(pending, 0);
    const whole = ended || line.endsWith("\n");
    if (!whole && (line.trim() === "" || MAYBE_FENCE.test(line) || MAYBE_FORMULA.test(line))) return null;
    if (line.trim() === "") return { length: line.length, code: false };
    const fence = FENCE.exec(line.trimEnd())?.[1];
    if (fence) return block(pending, line.length, (closing) => closes(closing, fence), ended);
    const formula = FORMULA.exec(line)?.[1];
    const shut = formula === "$$" ? "$$" : "\\]";
    if (formula && !line.trim().slice(2).includes(shut))
      return block(pending, line.length, (closing) => closing.endsWith(shut), ended);
    if (isRow(line)) return table(pending, ended);
    if (this.afterBlank && !this.inList && /^(?: {4}|\t)/.test(line))
      return whole ? { length: line.length, code: true } : null;
    return sentence(pending, ended);
  }

  /** What the next line must know of this one. */
  private remember(text: string, code: boolean): void {
    const blank = text.trim() === "";
    if (LIST_ITEM.test(text)) this.inList = true;
    else if (!blank && this.afterBlank && /^\S/.test(text)) this.inList = false;
    this.afterBlank = blank || (code && /^(?: {4}|\t)/.test(text));
  }
}

/** A text in parts of at most `limit` characters, cut at the ends of lines and sentences, at commas, or between words. */
export function cutLong(text: string, limit = SENTENCE_MAX_CHARACTERS): string[] {
  const parts: string[] = [];
  let rest = text;
  while (rest.length > limit) {
    const length = cutWithin(rest.slice(0, limit));
    parts.push(rest.slice(0, length));
    rest = rest.slice(length);
  }
  return [...parts, rest].map((part) => part.trim()).filter((part) => part !== "");
}

interface Found {
  length: number;
  code: boolean;
}

/** The first sentence of what is left of a line; null: more must come. Looks no further than a sentence may be long. */
function sentence(pending: string, ended: boolean): Found | null {
  const line = lineAt(pending, 0);
  const seen = line.slice(0, SENTENCE_MAX_CHARACTERS);
  for (const { index, segment } of segmenter.segment(seen)) {
    const end = endOf(seen, index + segment.length);
    if (!DECISIVE.test(seen.slice(end))) break;
    if (!goesOn(seen.slice(0, end))) return { length: end, code: false };
  }
  if (seen.length === line.length && line.endsWith("\n")) return { length: line.length, code: false };
  if (seen.length === SENTENCE_MAX_CHARACTERS) return { length: cutWithin(seen), code: false };
  return ended ? { length: line.length, code: false } : null;
}

/** Where the sentence really ends: behind marks that close there, before a bracket that opens the next one. */
function endOf(text: string, index: number): number {
  if (!/\s/.test(text[index - 1]!)) {
    const closers = CLOSERS.exec(text.slice(index));
    if (closers) return index + closers[0].length;
  }
  const opening = /(?<=.)[\p{Ps}\p{Pi}]+$/su.exec(text.slice(0, index));
  return opening?.index ?? index;
}

/** Whether what looks like a sentence is none: an abbreviation, a number, an address, or something not closed yet. */
function goesOn(text: string): boolean {
  if (/[.!?][*_~`"'\p{Pe}\p{Pf}]*$/u.test(text)) return true;
  const words = text.trimEnd().replace(/[*_~`"'\p{Pe}\p{Pf}]+$/u, "");
  return ABBREVIATIONS.test(words) || hasOpenMarks(text);
}

function hasOpenMarks(text: string): boolean {
  const plain = text.replace(/\\./g, "").replace(/(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)/gs, "");
  if (plain.includes("`")) return true;
  const withoutLinks = plain.replace(/\[[^\][]*\](?:\([^()]*\))?/g, "");
  if (withoutLinks.includes("[") || /\]\([^)]*$/.test(plain)) return true;
  if (["**", "__", "~~"].some((mark) => withoutLinks.split(mark).length % 2 === 0)) return true;
  const single = withoutLinks.replace(/\*\*|__/g, "");
  const opened = single.match(/(?<![\p{L}\p{N}*_])[*_](?=[^\s*_])/gu)?.length ?? 0;
  const closed = single.match(/(?<=[^\s*_])[*_](?![\p{L}\p{N}*_])/gu)?.length ?? 0;
  return opened > closed;
}

/** What is not spoken, from its first line to the one that closes it. */
function block(pending: string, start: number, isLast: (line: string) => boolean, ended: boolean): Found | null {
  for (let at = start; at < pending.length;) {
    const line = lineAt(pending, at);
    at += line.length;
    if ((ended || line.endsWith("\n")) && isLast(line.trim())) return { length: at, code: true };
  }
  return ended ? { length: pending.length, code: true } : null;
}

function closes(line: string, fence: string): boolean {
  return line.startsWith(fence) && line === fence[0]!.repeat(line.length);
}

/** All rows, so that they can be spoken without their bars. */
function table(pending: string, ended: boolean): Found | null {
  let at = 0;
  while (at < pending.length) {
    const line = lineAt(pending, at);
    const undecided = !line.endsWith("\n") && (line.trim() === "" || isRow(line));
    if (undecided && !ended) return null;
    if (!isRow(line)) return { length: at, code: false };
    at += line.length;
  }
  return ended ? { length: at, code: false } : null;
}

function isRow(line: string): boolean {
  return /^[ \t]*\|/.test(line);
}

/** The line that begins at `at`, with its end as far as it is there. */
function lineAt(text: string, at: number): string {
  const end = text.indexOf("\n", at);
  return end < 0 ? text.slice(at) : text.slice(at, end + 1);
}

/** Where to cut a text that is too long: in the gentlest way that is not too early, as late as that allows. */
function cutWithin(text: string): number {
  for (const pause of [/[.!?](?=\s)|[\n。！？]/g, /[,;:](?=\s)|[，、；：]/g, /\s/g]) {
    const last = [...text.matchAll(pause)].at(-1);
    if (last && last.index > text.length / 4) return last.index + 1;
  }
  return /[\ud800-\udbff]$/.test(text) ? text.length - 1 : text.length;
}
