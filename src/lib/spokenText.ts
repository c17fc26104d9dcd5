import { marked, type Token, type Tokens } from "marked";

/** What nobody can say: emoji with their joiners and selectors, and control characters. */
const UNSPEAKABLE =
  /[\p{Extended_Pictographic}\u{1F1E6}-\u{1F1FF}\u{1F3FB}-\u{1F3FF}\u200d\ufe0f\u20e3]|[^\P{Cc}\n\t]/gu;

/**
 * A text as it is to be spoken: Markdown by its words, links by theirs, no code blocks, no emoji, no bare addresses but
 * their host. Empty when nothing of it can be spoken.
 */
export function renderSpokenText(markdown: string): string {
  const spoken = renderBlocks(marked.lexer(markdown))
    .replace(UNSPEAKABLE, "")
    .replace(/[^\S\n]+/g, " ")
    .replace(/ *\n */g, "\n")
    .replace(/\n{2,}/g, "\n")
    .trim();
  return /[\p{L}\p{N}]/u.test(spoken) ? spoken : "";
}

function renderBlocks(tokens: Token[]): string {
  return tokens.map(renderToken).join("");
}

function renderToken(token: Token): string {
  switch (token.type) {
    case "code":
    case "space":
    case "hr":
    case "def":
    case "html":
      return "\n";
    case "heading":
    case "paragraph":
      return `${endSentence(renderBlocks(token.tokens ?? []))}\n`;
    case "blockquote":
      return `${renderBlocks(token.tokens ?? [])}\n`;
    case "list":
      return `${(token as Tokens.List).items.map((item) => `${endSentence(renderBlocks(item.tokens))}\n`).join("")}\n`;
    case "table":
      return renderTable(token as Tokens.Table);
    case "link":
      return token.text === token.href ? hostOf(token.href) : renderBlocks(token.tokens ?? []);
    case "image":
      return token.text;
    case "br":
      return "\n";
    case "codespan":
    case "escape":
      return token.text;
    default:
      return "tokens" in token && token.tokens ? renderBlocks(token.tokens) : "text" in token ? token.text : "";
  }
}

function renderTable(table: Tokens.Table): string {
  const rows = [table.header, ...table.rows];
  return rows.map((row) => `${endSentence(row.map((cell) => renderBlocks(cell.tokens)).join(", "))}\n`).join("");
}

// Without it a voice runs a heading or a list's line into what follows.
function endSentence(text: string): string {
  const line = text.trim();
  return line === "" || /[\p{P}]$/u.test(line) ? line : `${line}.`;
}

function hostOf(address: string): string {
  return URL.parse(address)?.hostname.replace(/^www\./, "") ?? "";
}
