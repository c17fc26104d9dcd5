import { grantByJob, endGrantByJob } from "../../services/grants.ts";
import { takeWords, type Command } from "./command.ts";

const DAY = /^\d{4}-\d{2}-\d{2}$/;

/** A day ends when it does in UTC; anything else is a moment. Throws for what is neither. */
function readEnd(text: string | undefined): Date | null {
  if (text === undefined) return null;
  const end = new Date(DAY.test(text) ? `${text}T24:00:00Z` : text);
  if (Number.isNaN(end.getTime()) || !/^\d{4}-\d{2}-\d{2}/.test(text))
    throw new Error("--until takes a day (2027-01-31, its end in UTC) or a moment (2027-01-31T12:00:00Z).");
  return end;
}

/** `npm run admin -- grant …`: plans as gifts. */
export const grantCommands: Record<string, Command> = {
  grant: {
    usage: "grant USER PLAN [--until DATE]",
    summary: "gives a plan, beside what the person pays for",
    help: `USER is an id or an e-mail address, PLAN a plan of the shop. It counts at once, and takes the place of an earlier gift;
of a gift and what somebody pays for the larger plan counts. DATE is its last day (2027-01-31, in UTC) or a moment
(2027-01-31T12:00:00Z); without it, it lasts until "grant end". The person gets a mail when their plan changes. Audited.`,
    options: ["until"],
    read(words, options) {
      const [user = "", plan = ""] = takeWords(words, "USER", "PLAN");
      const until = readEnd(options["until"]);
      return async (deps, person) => {
        const refused = await grantByJob(deps, person, { user, grant: { plan, until } });
        if (refused === null)
          console.error(`admin: ${user} has ${plan} ${until ? `until ${until.toISOString()}` : "until it is ended"}.`);
        return refused;
      };
    },
  },
  "grant end": {
    usage: "grant end USER",
    summary: "takes it back",
    help: `USER is an id or an e-mail address. What the person pays for stays; without that their plan is free from now on. Assistants
that have no place any more are paused, never deleted, and come back with a larger plan. Audited.`,
    read(words) {
      const [user = ""] = takeWords(words, "USER");
      return async (deps, person) => {
        const refused = await endGrantByJob(deps, person, user);
        if (refused === null) console.error(`admin: the gift of ${user} has ended.`);
        return refused;
      };
    },
  },
};
