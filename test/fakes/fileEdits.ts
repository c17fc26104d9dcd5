/** One exact replacement, in the shape that the gateway's `edit` tool takes. */
export type Edit = { oldText: string; newText: string };

function occurrences(text: string, part: string): number {
  return part === "" ? 0 : text.split(part).length - 1;
}

/**
 * The smallest block of whole lines that turns `before` into `after` and occurs only once in `before`. Undefined when
 * `before` is empty, or the texts are equal: then there is nothing to replace.
 */
export function editBetween(before: string, after: string): Edit | undefined {
  if (before === after) return undefined;
  const old = before.split("\n");
  const next = after.split("\n");
  const shorter = Math.min(old.length, next.length);
  let from = 0;
  while (from < shorter && old[from] === next[from]) from++;
  let tail = 0;
  while (tail < shorter - from && old[old.length - 1 - tail] === next[next.length - 1 - tail]) tail++;
  for (;;) {
    const oldText = old.slice(from, old.length - tail).join("\n");
    const replacement = next.slice(from, next.length - tail);
    // Lines that only go away take a neighbour along, or an empty line would stay behind.
    if (replacement.length > 0 && occurrences(before, oldText) === 1) {
      return { oldText, newText: replacement.join("\n") };
    }
    if (from > 0) from--;
    else if (tail > 0) tail--;
    else return undefined;
  }
}

/** The value of a `- Name: value` line, "" when it is there without one. */
export function fieldValue(content: string, name: string): string {
  const line = content.split("\n").find((candidate) => candidate.startsWith(`- ${name}:`));
  return line === undefined ? "" : line.slice(name.length + 3).trim();
}

/** Sets a `- Name: value` line, adding it when there is none. */
export function withField(content: string, name: string, value: string): string {
  const lines = content.split("\n");
  const at = lines.findIndex((line) => line.startsWith(`- ${name}:`));
  if (at < 0) return withLine(content, `- ${name}: ${value}`);
  lines[at] = `- ${name}: ${value}`;
  return lines.join("\n");
}

/** Adds a line behind the last one that is not blank; a line that is already there stays alone. */
export function withLine(content: string, line: string): string {
  const lines = content.split("\n");
  if (lines.includes(line)) return content;
  let end = lines.length;
  while (end > 0 && lines[end - 1]?.trim() === "") end--;
  return [...lines.slice(0, end), line, ...(end === lines.length ? [] : lines.slice(end))].join("\n");
}

/** Leaves out these lines and keeps every other one as it is. */
export function withoutLines(content: string, unwanted: readonly string[]): string {
  return content
    .split("\n")
    .filter((line) => !unwanted.includes(line))
    .join("\n");
}

/** The texts of the `- ` lines that are not fields of the form `- Name: value`. */
export function factLines(content: string): string[] {
  return content
    .split("\n")
    .filter((line) => line.startsWith("- ") && !/^- [A-Z][\w ]{0,30}:/.test(line))
    .map((line) => line.slice(2).trim());
}
