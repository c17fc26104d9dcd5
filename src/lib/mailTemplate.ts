/** A mail's template as it lies in `templates/mail/`: `text` begins with the line `Subject: …`. */
export interface MailTemplate {
  text: string;
  html: string;
  /** The frame of every HTML mail, with `{{> content}}` where the template goes. */
  layout: string;
}

export interface MailContent {
  subject: string;
  text: string;
  html: string;
}

const SUBJECT_CHARACTERS = 150;
const VALUE_CHARACTERS = 80;
// Controls and line ends, what turns the direction of writing, what is not seen at all; not what joins letters and emoji.
const UNSHOWABLE = /[\p{Cc}\p{Cs}\p{Co}\p{Zl}\p{Zp}]|(?![\u200c\u200d])\p{Cf}/gu;

/**
 * Puts values into a mail: `{{name}}` is the value, escaped in HTML. Values are links of ours or went through
 * `showable`. Pure. Throws when a template asks for a value that is not there.
 */
export function renderMailTemplate(template: MailTemplate, values: Record<string, string>): MailContent {
  const [first = "", ...rest] = template.text.split("\n");
  if (!first.startsWith("Subject: ")) throw new Error("a mail's text must begin with its subject");
  const subject = cut(
    fill(first.slice("Subject: ".length), values).replace(UNSHOWABLE, " ").trim(),
    SUBJECT_CHARACTERS,
  );
  const page = template.layout.replace("{{> content}}", () => template.html.trim());
  return {
    subject,
    text: `${fill(rest.join("\n").trim(), values)}\n`,
    html: fill(page, { ...values, subject }, escapeHtml),
  };
}

/**
 * A name that somebody chose, fit for a mail: one line, not too long, in no other direction than its own letters', and
 * nothing that a mail program makes a link of (whoever signs up with your address chooses the name you are greeted by).
 */
export function showable(name: string): string {
  const line = name
    .replace(UNSHOWABLE, " ")
    .replace(/[:/\\]{2,}/g, " ")
    .replace(/@/g, " at ")
    .replace(/\.(?=\p{L})/gu, ". ")
    .replace(/\s+/g, " ")
    .trim();
  return cut(line, VALUE_CHARACTERS);
}

function fill(source: string, values: Record<string, string>, escape = (value: string) => value): string {
  return source.replace(/\{\{(\w+)\}\}/g, (_, name: string) => {
    const value = values[name];
    if (value === undefined) throw new Error(`a mail template asks for ${name}, which is not given`);
    return escape(value);
  });
}

function escapeHtml(value: string): string {
  return value.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}

function cut(text: string, characters: number): string {
  const all = Array.from(text);
  return all.length <= characters ? text : `${all.slice(0, characters - 1).join("")}…`;
}
