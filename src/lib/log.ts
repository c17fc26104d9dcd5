import pino from "pino";

/** A logger of one JSON line per event. Fields are ids, codes, counts and times; never message text, never secrets. */
export type Log = pino.Logger;

// A net under the rule "never log secrets or text": what slips into a field of such a name is cut out.
const CENSORED = [
  "password",
  "token",
  "access_token",
  "refresh_token",
  "authorization",
  "content",
  "text",
  "email",
  "secret",
];

const WAITING_BYTES = 256 * 1024;

/** Creates the process's logger: JSON lines on standard output. */
export function createLog(level: string, destination?: pino.DestinationStream): Log {
  const options: pino.LoggerOptions = {
    level,
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label) => ({ level: label }) },
    redact: { paths: CENSORED.flatMap((name) => [name, `*.${name}`]), censor: "[redacted]" },
    // The stack stays (it names our code); the message of a foreign error may quote user text, so only its head does.
    serializers: {
      err: (error: Error) => ({ name: error.name, message: error.message?.slice(0, 200), stack: stackOf(error) }),
    },
  };
  return pino(options, destination ?? standardOutput());
}

// A log that can't be written (its disk is full) must not end the process: lines wait up to the limit and are then
// dropped; a later line that can be written takes the waiting ones along.
function standardOutput(): pino.DestinationStream {
  const output = pino.destination({ fd: 1, sync: true, maxLength: WAITING_BYTES });
  let complained = false;
  output.on("error", (error: NodeJS.ErrnoException) => {
    if (!complained) console.error(`The log can't be written (${error.code ?? error.message}): lines are lost.`);
    complained = true;
  });
  return output;
}

function stackOf(error: Error): string | undefined {
  return error.stack
    ?.split("\n")
    .filter((line) => line.trimStart().startsWith("at "))
    .slice(0, 8)
    .join("\n");
}
