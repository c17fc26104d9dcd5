import { listOpenAlarms } from "../../db/alarms.ts";
import { endAlarm } from "../../services/alarms.ts";
import { showTime, takeWords, type Command } from "./command.ts";

/** `npm run admin -- alarm …`: what is wrong now, and the end of what nobody looks at any more. */
export const alarmCommands: Record<string, Command> = {
  "alarm list": {
    usage: "alarm list",
    summary: "what is wrong now",
    help: "A line per alarm: since when, how often it was seen, how bad it is, its key, what it says.",
    read(words) {
      takeWords(words);
      return async (deps) => {
        for (const { firstAt, count, severity, key, summary } of await listOpenAlarms(deps.sql))
          console.log(`${showTime(firstAt)}  ${String(count).padStart(5)}x  ${severity.padEnd(9)}${key}  ${summary}`);
        return null;
      };
    },
  },
  "alarm end": {
    usage: "alarm end KEY",
    summary: "an alarm of something that is no more: a gateway or a host that was taken away",
    help: "KEY as `alarm list` shows it. Whoever sees the trouble again raises it again.",
    read(words) {
      const [key = ""] = takeWords(words, "KEY");
      return async (deps) => {
        const known = (await listOpenAlarms(deps.sql)).some((alarm) => alarm.key === key);
        if (!known) return `there is no alarm ${key}: alarm list shows them`;
        await endAlarm(deps, key);
        return null;
      };
    },
  },
};
