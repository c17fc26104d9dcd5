import { answers, scriptOf } from "./model.ts";
import type { Simulation } from "./run.ts";

interface MessageRow {
  id: string;
  assistantId: string;
  turnId: string;
  seq: number;
  role: string;
  content: string;
  clientId: string | null;
  finish: string;
}
interface TurnRow {
  id: string;
  seq: number;
  status: string;
  attempts: number;
  leaseOwner: string | null;
  stopRequested: boolean;
  ledger: string | null;
}
interface Rows {
  messages: MessageRow[];
  turns: TurnRow[];
  days: { date: string; used: number; counted: number }[];
}

/** What may be taken over from a process that is well: nothing. */
const EXCUSES_TAKEOVER = [
  "kill",
  "freeze",
  "stand still",
  "break database",
  "stop process",
  "forget agent",
  "cut gateway",
  "lose answer",
  "starved",
];

/** What may cost an answer that the model would have given. */
const EXCUSES_FAILURE = [
  "kill gateway",
  "restart gateway",
  "cut gateway",
  "lose answer",
  "forget agent",
  "break database",
  "starved",
];

/** Compares what became of a schedule with what must be true. Returns each lie. */
export async function judge(simulation: Simulation, unsettled: string[]): Promise<string[]> {
  const rows = await readRows(simulation);
  const devices = simulation.devices.flatMap((device) => device.faults);
  if (unsettled.length > 0) return [...unsettled, ...unfinished(rows), ...devices];
  return [
    ...devices,
    ...judgeConversations(simulation, rows),
    ...judgeTurns(simulation, rows),
    ...judgeUsage(simulation, rows),
    ...judgeViews(simulation, rows),
    ...judgeGateway(simulation),
  ];
}

async function readRows({ lane, userId }: Simulation): Promise<Rows> {
  const sql = lane.admin;
  const [messages, turns, days] = await Promise.all([
    sql<MessageRow[]>`select * from messages where user_id = ${userId} order by assistant_id, seq`,
    sql<TurnRow[]>`select t.*, u.status as ledger from turns t left join usage_logs u on u.idempotency_key = t.id::text
      where t.user_id = ${userId} order by t.assistant_id, t.seq`,
    sql<{ date: string; used: number; counted: number }[]>`
      select d.date::text as date, d.text_messages as used, (select count(*)::int from usage_logs u
        where u.user_id = d.user_id and u.date = d.date and u.status <> 'released') as counted
      from daily_usage d where d.user_id = ${userId}`,
  ]);
  return { messages, turns, days };
}

function unfinished({ turns }: Rows): string[] {
  const open = turns.filter((turn) => !["done", "failed", "stopped"].includes(turn.status));
  return open.map((turn) => `turn ${turn.seq} is still ${turn.status} after ${turn.attempts} attempts`);
}

/** What was acknowledged is there, once, and numbered without a gap. */
function judgeConversations({ devices, assistantIds }: Simulation, { messages }: Rows): string[] {
  const lies: string[] = [];
  for (const assistantId of assistantIds) {
    const own = messages.filter((message) => message.assistantId === assistantId);
    const gap = own.findIndex((message, index) => message.seq !== index + 1);
    if (gap >= 0) lies.push(`seq ${own[gap]!.seq} stands at place ${gap + 1}`);
  }
  for (const { said, assistantId, name } of devices) {
    for (const { ack, clientId, content } of said) {
      const stored = messages.filter((one) => one.clientId === clientId);
      if (!ack) continue;
      if (stored.length !== 1) lies.push(`${name} has an ack for ${content}, which is stored ${stored.length} times`);
      const [one] = stored;
      if (!one) continue;
      const same = one.seq === ack.seq && one.turnId === ack.turnId && one.id === ack.messageId;
      if (!same || one.content !== content || one.assistantId !== assistantId)
        lies.push(`the ack of ${content} is not what is stored`);
    }
  }
  const known = new Set(devices.flatMap(({ said }) => said.map((one) => one.clientId)));
  const strange = messages.filter((one) => one.role === "user" && !known.has(one.clientId!));
  return [...lies, ...strange.map((one) => `${one.content} was never said`)];
}

/** Each message has one turn, each turn one end and one answer, by who held it; what it cost fits how it ended. */
function judgeTurns(simulation: Simulation, rows: Rows): string[] {
  const lies = rows.messages
    .filter((message) => message.role === "user" && !rows.turns.some((turn) => turn.id === message.turnId))
    .map((message) => `${message.content} has no turn`);
  for (const turn of rows.turns) {
    const own = rows.messages.filter((message) => message.turnId === turn.id);
    const question = own.filter((message) => message.role === "user");
    const answer = own.filter((message) => message.role === "assistant");
    const about = `the turn of ${question[0]?.content} (${turn.status})`;
    if (question.length !== 1 || answer.length !== 1)
      lies.push(`${about} has ${question.length} + ${answer.length} messages`);
    const text = answer[0]?.content ?? "";
    const charged = turn.status === "done" || (turn.status === "stopped" && text !== "");
    if (turn.ledger !== (charged ? "committed" : "released")) lies.push(`${about} is ${turn.ledger} in the ledger`);
    lies.push(...judgeAnswer(simulation, turn, text).map((lie) => `${about} ${lie}`));
    lies.push(...judgeCourse(simulation, turn, question[0]?.content ?? "").map((lie) => `${about} ${lie}`));
  }
  return lies;
}

/** What was said is what the model said, and begins with what people have seen. */
function judgeAnswer({ gateway, devices, happened }: Simulation, turn: TurnRow, text: string): string[] {
  const lies: string[] = [];
  // What a run had said in front of a tool call before it was lost with the gateway stays in the history.
  const begun = gateway.asked.filter((one) => one.key === turn.id).length > 1;
  const fits = (answer: string) => answer === text || (begun && text.endsWith(`\n\n${answer}`));
  if (turn.status === "done" && !(gateway.answers.get(turn.id) ?? []).some(fits))
    lies.push(`says "${text}", the model said ${JSON.stringify(gateway.answers.get(turn.id) ?? [])}`);
  // What was heard last is lost with its process (Redis has it a little later) when the gateway does not know it either:
  // it died, too, or the run failed and all it has is a note, perhaps in its own words.
  const gatewayDied = happened.has("kill gateway") || happened.has("restart gateway");
  if (turn.attempts > 1 && (turn.status === "failed" || gatewayDied)) return lies;
  if (begun || gateway.retried.has(turn.id)) return lies;
  for (const connection of devices.flatMap((device) => device.connections)) {
    const seen = connection.chunks.get(turn.id);
    if (!seen) continue;
    if (seen.text !== "" && !text.startsWith(seen.text))
      lies.push(`says "${text}", ${connection.name} has seen "${seen.text}"`);
    if (seen.cursor < turn.seq) lies.push(`was shown to ${connection.name} before its question`);
  }
  return lies;
}

/** Nothing is taken over or fails without a reason; who says that it ended it, held it. */
function judgeCourse(simulation: Simulation, turn: TurnRow, question: string): string[] {
  const { schedule, happened, around } = simulation;
  const lies: string[] = [];
  if (turn.attempts > 1 && !EXCUSES_TAKEOVER.some((excuse) => happened.has(excuse)))
    lies.push(`was begun ${turn.attempts} times although nothing had happened to anybody`);
  const smooth = schedule.calm && !turn.stopRequested && answers(scriptOf(schedule.seed, question, 0, "calm"));
  if (smooth && turn.status !== "done") lies.push("should be done: nothing had happened");
  const could = [0, 1, 2].every((n) => answers(scriptOf(schedule.seed, question, n, schedule.model)));
  const helped = EXCUSES_FAILURE.some((excuse) => happened.has(excuse)) || simulation.freezes > 1;
  if (turn.status === "failed" && turn.attempts > 1 && could && !helped)
    lies.push("failed although one that took it over could have had its answer");
  const enders = around.ended.filter((end) => end.turnId === turn.id);
  if (enders.length > 1) lies.push(`was ended ${enders.length} times`);
  if (enders.some((end) => end.by !== turn.leaseOwner)) lies.push("was ended by one who did not hold it any more");
  return lies;
}

function judgeUsage({ schedule }: Simulation, { days }: Rows): string[] {
  return days.flatMap(({ date, used, counted }) => [
    ...(used === counted ? [] : [`${date}: ${used} are used, the ledger has ${counted}`]),
    ...(used <= schedule.dailyLimit ? [] : [`${date}: ${used} are used of ${schedule.dailyLimit}`]),
  ]);
}

/** All devices end with the whole conversation. */
function judgeViews({ devices, processes }: Simulation, { messages }: Rows): string[] {
  const lies: string[] = [];
  for (const device of devices) {
    const own = messages.filter((message) => message.assistantId === device.assistantId);
    const has = (message: MessageRow) => {
      const { role, content, finish } = message;
      return JSON.stringify(device.messages.get(message.seq)) === JSON.stringify({ role, content, finish });
    };
    const lacks = own.filter((message) => !has(message)).map((message) => message.seq);
    if (lacks.length > 0) lies.push(`${device.name} lacks ${lacks.join(", ")} of ${own.length}`);
    if (device.messages.size > own.length) lies.push(`${device.name} has messages that are not stored`);
  }
  const holding = processes.filter((process) => process.running() > 0);
  return [...lies, ...holding.map((process) => `${process.name} still holds ${process.running()} turns that are over`)];
}

function judgeGateway({ gateway, freezes }: Simulation): string[] {
  const lies: string[] = [];
  const lives = gateway.asked.map((one) => `${one.key} in life ${one.boot}`);
  if (new Set(lives).size < lives.length) lies.push("the model was asked twice for one key in one life of the gateway");
  if (gateway.asked.some((one) => one.known)) lies.push("the model was asked again for what it had answered");
  // Who stood still between its last look and the send can't know; the run is then nobody's until it ends.
  if (freezes === 0 && gateway.asked.some((one) => one.over)) lies.push("the model was asked for a turn that was over");
  if (gateway.steered.length > 0) lies.push(`${gateway.steered.length} messages were steered into another's run`);
  return [...lies, ...gateway.running().map(() => "a run is left at the gateway that nobody wants")];
}
