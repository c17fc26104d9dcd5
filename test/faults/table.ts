import { MOMENTS, type Moment } from "./moments.ts";

export const PARTS = [
  "api",
  "gateway",
  "redis",
  "postgres",
  "client",
  "client-api",
  "api-postgres",
  "api-redis",
  "api-gateway",
] as const;
export type Part = (typeof PARTS)[number];
export const FAULTS = ["kill", "stop", "cut", "slow", "half-open"] as const;
export type Fault = (typeof FAULTS)[number];

/** What a part is, in words. */
export const PART_NAMES: Record<Part, string> = {
  api: "API process",
  gateway: "gateway",
  redis: "Redis",
  postgres: "Postgres",
  client: "client",
  "client-api": "network client – API",
  "api-postgres": "network API – Postgres",
  "api-redis": "network API – Redis",
  "api-gateway": "network API – gateway",
};

/** A combination: run, or (with the reason) why not. */
export interface Cell {
  part: Part;
  fault: Fault;
  moment: Moment;
  id: string;
  /** Null: it is run. "same": another cell is this one. "impossible": it can't happen. */
  skip: { why: "same" | "impossible"; reason: string } | null;
}

const isNetwork = (part: Part) => part.includes("-");
const same = (reason: string) => ({ why: "same" as const, reason });
const impossible = (reason: string) => ({ why: "impossible" as const, reason });

/** Pairs of the list between which there is no network. */
export const NO_NETWORK = [
  ["client", "gateway, Redis, Postgres", "a device talks to API processes only"],
  ["gateway", "Redis, Postgres", "the gateway knows neither"],
  ["Redis", "Postgres", "they do not know each other"],
  ["API process", "API process", "they talk through Postgres and Redis only"],
] as const;

function skipByFault(part: Part, fault: Fault): Cell["skip"] {
  if (isNetwork(part)) {
    if (fault === "kill") return impossible("a network is no process; its sudden end is its cut");
    if (fault === "stop") return impossible("a network is no process; one in which nothing arrives is half-open");
    return null;
  }
  if (fault === "kill" || fault === "stop") return null;
  const networks = {
    api: "all its networks",
    gateway: "api-gateway",
    redis: "api-redis",
    postgres: "api-postgres",
    client: "client-api",
  }[part as "api"];
  return same(`a process has no ${fault} of its own: see ${networks}/${fault}`);
}

function skipByMoment(part: Part, fault: Fault, moment: Moment): Cell["skip"] {
  const from = FIRST_TOUCH[part];
  if (fault === "slow" && moment !== from)
    return same(`a network that is slow stays slow to the end: ${part}/slow/${from} has this moment in it`);
  return SAME_MOMENT[part]?.[moment] ?? null;
}

/** The first moment at which a part matters to a message. */
const FIRST_TOUCH: Record<Part, Moment> = {
  api: "before ack",
  gateway: "queued",
  redis: "dispatched",
  postgres: "before ack",
  client: "before ack",
  "client-api": "before ack",
  "api-postgres": "before ack",
  "api-redis": "dispatched",
  "api-gateway": "queued",
};

const OF_REDIS = {
  "before ack": same("accepting a message asks Redis nothing: see dispatched"),
  queued: same("the queue is in Postgres: see dispatched"),
  committed: same("after the text Redis carries only the usage frame: see final seen"),
};
const OF_GATEWAY = {
  "before ack": same("the gateway hears of a message only when it is dispatched: see queued"),
  "first chunk": same("for the gateway a chunk is a chunk: see middle"),
  committed: same("the gateway has done its part: see final seen"),
};
const OF_CLIENT = {
  dispatched: same("a client can't tell a queued message from a dispatched one: see queued"),
  "first chunk": same("for a client a chunk is a chunk: see middle"),
  "final seen": same("a client can't see the final before the message: see middle"),
};
const SAME_MOMENT: Partial<Record<Part, Partial<Record<Moment, Cell["skip"]>>>> = {
  redis: OF_REDIS,
  "api-redis": OF_REDIS,
  gateway: OF_GATEWAY,
  "api-gateway": OF_GATEWAY,
  client: OF_CLIENT,
  "client-api": OF_CLIENT,
};

export const TABLE: Cell[] = PARTS.flatMap((part) =>
  FAULTS.flatMap((fault) =>
    MOMENTS.map((moment) => ({
      part,
      fault,
      moment,
      id: `${part}/${fault}/${moment}`,
      skip: skipByFault(part, fault) ?? skipByMoment(part, fault, moment),
    })),
  ),
);

/** Whether the real gateway belongs into the cell. */
export function isAboutGateway(cell: Cell): boolean {
  return cell.part === "gateway" || cell.part === "api-gateway";
}

/** The quick half, with shorter strikes and the fake gateway: each process, and each network but the one to Redis. */
export const QUICK = [
  "api/kill/middle",
  "api/stop/final seen",
  "gateway/kill/dispatched",
  "redis/kill/first chunk",
  "postgres/kill/committed",
  "postgres/stop/middle",
  "client/kill/before ack",
  "client-api/half-open/middle",
  "api-postgres/cut/final seen",
  "api-gateway/cut/middle",
];

export function findCell(id: string): Cell {
  const cell = TABLE.find((one) => one.id === id);
  if (!cell) throw new Error(`There is no cell "${id}".`);
  return cell;
}
