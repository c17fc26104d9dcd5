import { listGateways, type GatewayRow } from "../../db/gateways.ts";
import { setPlacement } from "../../services/gateways.ts";
import { showTime, takeWords, type Command } from "./command.ts";

function renderRow(row: GatewayRow): string {
  const seen = row.seen ? "there" : `away since ${showTime(row.lastSeenAt)}`;
  const stopped = row.placementStoppedReason === null ? "" : `   nothing new: ${row.placementStoppedReason}`;
  const about = `${row.assistants} assistants   ${row.queued} waiting   ${row.version ?? "?"}   ${row.filesUrl ?? "-"}`;
  return `${row.id.padEnd(16)}${row.status.padEnd(10)}${seen.padEnd(30)}${about}${stopped}`;
}

const change = (word: string, status: "active" | "draining", summary: string, help: string): Command => ({
  usage: `gateway ${word} ID`,
  summary,
  help,
  read(words) {
    const [id = ""] = takeWords(words, "ID");
    return async (deps, person) => {
      const refused = await setPlacement(deps, person, { id, status });
      if (refused === null) console.error(`admin: the gateway ${id} is ${status}.`);
      return refused;
    };
  },
});

/** `npm run admin -- gateway …`: which gateways get new assistants. */
export const gatewayCommands: Record<string, Command> = {
  "gateway list": {
    usage: "gateway list",
    summary: "every gateway, whether a process is connected to it, and what it has",
    help: `A line per gateway: its name, its status, whether a process is connected to it, its assistants, messages that wait, its
version, where its folder is served.`,
    read(words) {
      takeWords(words);
      return async (deps) => {
        for (const row of await listGateways(deps.sql)) console.log(renderRow(row));
        return null;
      };
    },
  },
  "gateway drain": change(
    "drain",
    "draining",
    "no new assistants there",
    `ID is its GATEWAY_ID. Those that live there stay and are answered: assistants are not moved between gateways. Audited.`,
  ),
  "gateway activate": change(
    "activate",
    "active",
    "new assistants there again",
    `ID is its GATEWAY_ID. What stopped new assistants for another reason (the canary) is not lifted by it. Audited.`,
  ),
};
