/** A message of only one of these words stops the running turn (from the package's own list). */
const stopWords = new Set(
  (
    "stop|esc|abort|exit|interrupt|detente|deten|detén|arrete|arrête|停止|停下来|暂停|やめて|止めて|रुको|توقف|стоп|остановись|останови|" +
    "остановить|прекрати|halt|anhalten|aufhören|hoer auf|stopp|pare|stop openclaw|openclaw stop|stop action|stop current action|" +
    "stop run|stop current run|stop agent|stop the agent|stop don't do anything|stop dont do anything|stop do not do anything|" +
    "stop doing anything|do not do that|please stop|stop please"
  ).split("|"),
);
const commandNames =
  "help|commands|status|whoami|id|context|model|models|new|reset|restart|compact|think|verbose|reasoning|elevated|exec|queue|usage|" +
  "tts|config|debug|mcp|plugins|allowlist|approve|session|export|subagents|activation|send|bash|skill|kill|steer|tasks";
const leading = new RegExp(`^/(${commandNames})(?![a-z])`, "i");
const inline = /(^|\s)\/(help|commands|status|whoami|id)(?![a-z])/gi;

export type Interpreted =
  | { kind: "stop" }
  | { kind: "command"; reply: string }
  /** `cut`: replies of the commands that were taken out of the text. */
  | { kind: "text"; text: string; cut: string[] };

/** What the gateway makes of a chat text. U+2060 is no white space to it, so a neutralised text is only a text. */
export function interpret(message: string): Interpreted {
  const trimmed = message.trim();
  const word = trimmed
    .toLowerCase()
    .replace(/[’`]/g, "'")
    .replace(/\s+/g, " ")
    .replace(/[.!?！？…,，。;；:：'"’”)\]}]+$/u, "")
    .trim();
  if (word === "/stop" || stopWords.has(word)) return { kind: "stop" };
  const command = leading.exec(trimmed)?.[1];
  if (command) return { kind: "command", reply: reply(command) };
  const cut: string[] = [];
  const text = message.replace(inline, (_match, _space: string, name: string) => {
    cut.push(reply(name));
    return "";
  });
  return { kind: "text", text, cut };
}

function reply(command: string): string {
  if (/^(whoami|id)$/i.test(command))
    return "🧭 Identity\nChannel: webchat\nUser id: gateway-client\nAllowFrom: gateway-client";
  return `🦞 OpenClaw: the gateway took /${command.toLowerCase()} as a command; the model never saw it.`;
}
