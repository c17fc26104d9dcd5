import { MOMENTS } from "./moments.ts";
import { FAULTS, NO_NETWORK, PART_NAMES, PARTS, TABLE, type Cell, type Part } from "./table.ts";

/** A line of a run's report. */
export interface Noted {
  id: string;
  outcome: "answered" | "given back" | "failing";
  /** From the strike until both devices showed the outcome. */
  seconds: number;
  tookSeconds: number;
}

const INTRO = `# Faults

Written by \`npm run test:faults\`; do not edit. What happens to one message when a part of Reef is struck, at each moment
of the message's life.

Two API processes, two devices of one person: device one talks to process A and sends; device two watches on process B.
A answers, so A is the process that is struck; B may take over. Each part is reached through a proxy that can be struck.
Where the cell is about the gateway, it is the real OpenClaw.

- **kill**: SIGKILL, then started again at once. **stop**: SIGSTOP for 10 s. **cut**: every connection is reset, new ones
  are for 3 s. **slow**: 150 ms each way and 20 KB/s, to the end. **half-open**: for 10 s everything vanishes and nobody
  hears of an end; the connections it caught never recover.
- **before ack**: the message waits to be stored. **queued**: it is acknowledged, nobody has claimed it. **dispatched**:
  the model was asked and says nothing. **first chunk**, **middle**: both devices have that much. **final seen**: the
  answer is whole and waits to be stored. **committed**: it is stored, and the process does not know yet.
- **answered 4**: both devices showed the whole answer four seconds after the strike began. **given back**: both showed an
  honest failure, and the message was not charged.

After each cell one more message is answered on both devices. Then: one row for each question, one turn, one answer; no gap
in the numbers; the day's counter equals the ledger; both devices show exactly the stored rows; chunks came without gap
or overlap on each connection, and none said what the stored answer does not.

One cell alone: \`npm run test:faults -- --cell "postgres/kill/middle"\`. The client that the devices are is
\`test/faults/goodClient.ts\`.
`;

/** The document of a whole run. */
export function renderReport(notes: Noted[]): string {
  const noted = new Map(notes.map((note) => [note.id, note]));
  const parts = PARTS.map((part) => renderPart(part, noted));
  const none = NO_NETWORK.map(([one, other, why]) => `- ${one} – ${other}: can't happen, ${why}.`);
  return `${[INTRO, renderCounts(notes), ...parts, "## Networks that are not there\n", none.join("\n")].join("\n")}\n`;
}

function renderCounts(notes: Noted[]): string {
  const count = (outcome: Noted["outcome"]) => notes.filter((note) => note.outcome === outcome).length;
  const skipped = (why: "same" | "impossible") => TABLE.filter((cell) => cell.skip?.why === why).length;
  return [
    `${TABLE.length} combinations: ${notes.length} run (${count("answered")} answered, ${count("given back")} given back, ` +
      `${count("failing")} failing),`,
    `${skipped("same")} are the same as another, ${skipped("impossible")} can't happen.\n`,
  ].join("\n");
}

function renderPart(part: Part, noted: Map<string, Noted>): string {
  const reasons: string[] = [];
  const mark = (cell: Cell) => {
    const { why, reason } = cell.skip!;
    if (!reasons.includes(reason)) reasons.push(reason);
    return `${why === "same" ? "same" : "can't happen"} (${reasons.indexOf(reason) + 1})`;
  };
  const show = (cell: Cell | undefined) => {
    if (!cell) return "";
    if (cell.skip) return mark(cell);
    const note = noted.get(cell.id);
    if (!note) return "not run";
    return note.outcome === "failing" ? "**failing**" : `${note.outcome} ${Math.round(note.seconds)}`;
  };
  const rows = FAULTS.map((fault) => {
    const cells = MOMENTS.map((moment) => TABLE.find((cell) => cell.id === `${part}/${fault}/${moment}`));
    return `| ${fault} | ${cells.map(show).join(" | ")} |`;
  });
  const table = [`| | ${MOMENTS.join(" | ")} |`, `|---|${MOMENTS.map(() => "---|").join("")}`, ...rows].join("\n");
  const notes = reasons.map((reason, index) => `${index + 1}. ${reason}`).join("\n");
  return `## ${capitalize(PART_NAMES[part])} (\`${part}\`)\n\n${table}\n\n${notes}\n`;
}

function capitalize(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
