/**
 * Text as Postgres and JSON can carry it: no NUL, no half of a surrogate pair. A half at the very end is cut off, since
 * in a growing text its other half comes next; elsewhere it becomes U+FFFD.
 */
export function toStorable(text: string): string {
  return text
    .replace(/[\uD800-\uDBFF]$/, "")
    .replaceAll("\u0000", "")
    .toWellFormed();
}
