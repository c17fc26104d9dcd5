import { Marked, type Token, type TokenizerAndRendererExtension, type Tokens } from "marked";

/** What nobody can say: emoji with all that joins and colours them, control characters, marks of direction and of width. */
const UNSPEAKABLE =
  / *(?:\p{Extended_Pictographic}[\u200d\p{Emoji_Modifier}]*|[\p{RI}\p{Emoji_Modifier}\ufe0e\ufe0f\u20e3\u{e0020}-\u{e007f}]|\u200d(?=\p{Extended_Pictographic}))+|[^\P{Cc}\n\t]|[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufffd]/gu;
/** A sentence's end, perhaps behind a quotation mark or a bracket. */
const ENDED = /[.!?…:;,。！？；：、؟؛۔।॥]["'”’»›)\]]*$/;
const ADDRESS = /^(?:https?:\/\/|www\.)\S+$/i;
const LINE_BREAKING_TAG = /^<\/?(br|p|div|li|ul|ol|tr|h[1-6]|blockquote|hr|summary|details)\b/i;
const ENTITIES: Record<string, string> = {
  amp: "&",
  lt: "<",
  gt: ">",
  quot: '"',
  apos: "'",
  nbsp: " ",
  ndash: "–",
  mdash: "—",
  hellip: "…",
  euro: "€",
  copy: "©",
  deg: "°",
  times: "×",
};
/** Markdown is read in pieces: of one piece the parser's time may grow with the square of its length. */
const PIECE_CHARACTERS = 4096;

/**
 * A text as it is to be spoken: Markdown by its words, links by theirs, no code blocks or formulas that stand alone, no
 * emoji, of bare addresses only the host. Empty when nothing of it can be spoken. At most `maxCharacters`.
 */
export function renderSpokenText(markdown: string, maxCharacters = Number.POSITIVE_INFINITY): string {
  // A star between digits is no emphasis.
  const source = markdown.toWellFormed().replaceAll(/(?<=\d)\*(?=\d)/g, "×");
  const spoken = splitPieces(source)
    .map((piece) => renderAll(parser.lexer(piece)))
    .join("\n")
    .replaceAll(/[^\S\n]+/g, " ")
    .replaceAll(/ ?\n[ \n]*/g, "\n")
    .trim();
  if (!/[\p{L}\p{N}]/u.test(spoken)) return "";
  // What was added for the ear goes first.
  return spoken.length <= maxCharacters ? spoken : spoken.replaceAll(/[.,](?=\s)/g, "").slice(0, maxCharacters);
}

/** Cuts where a line ends, else at a space; never inside a fenced block. */
function splitPieces(text: string): string[] {
  if (text.length <= PIECE_CHARACTERS) return [text];
  const pieces: string[] = [];
  let piece = "";
  let fence: string | null = null;
  for (const line of text.split("\n").flatMap(splitLine)) {
    if (fence === null && piece.length + line.length > PIECE_CHARACTERS) {
      pieces.push(piece);
      piece = "";
    }
    piece += `${line}\n`;
    const mark = /^[\s>]*(```+|~~~+)/.exec(line)?.[1] ?? null;
    if (mark !== null && (fence === null || mark.startsWith(fence))) fence = fence === null ? mark : null;
  }
  return [...pieces, piece];
}

function splitLine(line: string): string[] {
  const parts: string[] = [];
  let rest = line;
  while (rest.length > PIECE_CHARACTERS) {
    const space = rest.lastIndexOf(" ", PIECE_CHARACTERS);
    const end = space > 0 ? space : PIECE_CHARACTERS;
    parts.push(rest.slice(0, end));
    rest = rest.slice(end);
  }
  return [...parts, rest];
}

/** `fits`: whether what stands between the marks is meant. */
const inline = (name: string, start: RegExp, pattern: RegExp, fits: RegExp = /^/): TokenizerAndRendererExtension => ({
  name,
  level: "inline",
  start: (source) => {
    const at = source.search(start);
    return at < 0 ? undefined : at;
  },
  tokenizer: (source) => {
    const [raw, ...parts] = pattern.exec(source) ?? [];
    const text = parts.find((part) => part !== undefined) ?? "";
    return raw !== undefined && fits.test(text) ? { type: name, raw, text } : undefined;
  },
});

// Not Markdown, but what models write with it: formulas in TeX, footnotes, alerts.
const parser = new Marked({
  extensions: [
    inline("shownFormula", /\$\$|\\\[/, /^(?:\$\$([^$]+)\$\$|\\\[((?:[^\\]|\\[^[\]])+)\\\])/, /[\\=^_+]/),
    inline("formula", /\$|\\\(/, /^(?:\$(?!\s)([^$\n]+)(?<!\s)\$(?!\d)|\\\(((?:[^\\\n]|\\[^()\n])+)\\\))/),
    inline("mark", /\[[\^!]/, /^\[(?:\^[^\]\s]{1,50}|![A-Z]{1,20})\]:?/),
  ],
});

function renderAll(tokens: Token[]): string {
  return tokens.map(renderToken).join("");
}

function renderToken(token: Token): string {
  switch (token.type) {
    case "code":
    case "space":
    case "hr":
    case "def":
    case "br":
      return "\n";
    case "shownFormula":
      return " ";
    case "mark":
    case "checkbox":
      return "";
    case "formula":
      return clean(token["text"].replaceAll(/\\[,;:! ]|[\\{}]/g, " "));
    case "html":
      return renderHtml(token as Tokens.HTML);
    case "heading":
    case "paragraph":
      return `${endSentence(renderAll(token.tokens ?? []))}\n`;
    case "blockquote":
      return `${renderAll(token.tokens ?? [])}\n`;
    case "list":
      return renderList(token as Tokens.List);
    case "table":
      return renderTable(token as Tokens.Table);
    case "link":
      return renderLink(token as Tokens.Link);
    case "image":
    case "codespan":
      return clean(token.text);
    case "text":
      // One that has parts is a block: the line of a list.
      return token.tokens ? `${endSentence(renderAll(token.tokens))}\n` : clean(decodeEntities(token.text));
    default:
      return "tokens" in token && token.tokens ? renderAll(token.tokens) : "text" in token ? clean(token.text) : "";
  }
}

function clean(text: string): string {
  return text.replaceAll(/ +/g, " ").replaceAll(UNSPEAKABLE, "");
}

function decodeEntities(text: string): string {
  return text.replaceAll(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|([a-z]{2,8}));/gi, (whole, decimal, hex, name) => {
    if (name !== undefined) return ENTITIES[name as string] ?? whole;
    const point = decimal === undefined ? Number.parseInt(hex as string, 16) : Number(decimal);
    return point > 0 && point <= 0x10ffff ? String.fromCodePoint(point).toWellFormed() : "";
  });
}

function renderHtml({ text, block }: Tokens.HTML): string {
  if (!block) return LINE_BREAKING_TAG.test(text) ? "\n" : "";
  const words = text
    .replaceAll(/<!--[^]*?(?:-->|$)|<(script|style|pre|svg)\b[^]*?(?:<\/\1\s*>|$)/gi, "")
    .replaceAll(/<[^<>]*>/g, (tag) => (LINE_BREAKING_TAG.test(tag) ? "\n" : ""));
  return `${words
    .split("\n")
    .map((line) => endSentence(clean(decodeEntities(line))))
    .join("\n")}\n`;
}

function renderList(list: Tokens.List): string {
  const first = typeof list.start === "number" ? list.start : 1;
  const lines = list.items.map((item, n) => {
    const words = renderAll(item.tokens).trim();
    return list.ordered && words !== "" ? `${first + n}. ${words}` : words;
  });
  return `\n${lines.join("\n")}\n`;
}

function renderTable(table: Tokens.Table): string {
  const rows = [table.header, ...table.rows].map((row) => row.map((cell) => renderAll(cell.tokens).trim()));
  return rows.map((row) => `${endSentence(row.filter((cell) => cell !== "").join(", "))}\n`).join("");
}

function renderLink(link: Tokens.Link): string {
  const { text } = link;
  if (ADDRESS.test(text)) return /^(?:https?:\/\/)?(?:www\.)?([^/?#:]+)/i.exec(text)?.[1] ?? "";
  return /^(mailto|tel):/.test(text) ? text.slice(text.indexOf(":") + 1) : renderAll(link.tokens);
}

// Without it a voice runs a heading or a list's line into what follows.
function endSentence(text: string): string {
  const line = text.trim();
  return line === "" || ENDED.test(line) ? line : `${line}.`;
}
