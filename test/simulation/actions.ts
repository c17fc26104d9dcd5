import type { SqlFault } from "./database.ts";
import { planLimits } from "./lane.ts";
import type { ModelMood } from "./model.ts";
import { createRandom, type Random } from "./random.ts";

/** One thing that happens to the system from outside. Processes and devices are numbered. */
export type Act =
  | { do: "say" | "again" | "drop" | "stop" | "slow" | "read" | "resume"; device: number }
  | { do: "connect"; device: number; process: number }
  | { do: "advance" | "pass"; ms: number }
  | { do: "stand still"; process: number; ms: number }
  | { do: "doze"; ms: number }
  | { do: "kill" | "start" | "freeze" | "thaw" | "stop process" | "deafen" | "hear" | "lose answer"; process: number }
  | { do: "break database"; process: number; fault: SqlFault }
  | { do: "cut gateway"; process: number }
  | { do: "kill gateway" | "restart gateway" | "start gateway" | "empty redis" | "stop redis" | "start redis" }
  | { do: "forget agent"; assistant: number };

/** `id` seeds what is drawn after it, so that leaving others out changes little; `operations`: how many happen after it. */
export type Action = Act & { id: number; operations: number };

export interface Schedule {
  seed: number;
  /** Nothing breaks: then everything must go well at the first attempt. */
  calm: boolean;
  /** Time goes on only when everybody has done what there is to do: then nobody is late without a fault. */
  patient: boolean;
  model: ModelMood;
  /** Notices may be doubled, and lost. */
  notices: "good" | "doubled" | "lossy";
  processes: number;
  assistants: number;
  dailyLimit: number;
  startsAt: number;
  actions: Action[];
}

const DEVICES = 2;
type Maker = (random: Random, size: { processes: number; devices: number; assistants: number }) => Act;
type Choice = { weight: number; make: Maker };

const onDevice =
  (
    name: Extract<Act, { device: number }>["do"] & ("say" | "again" | "drop" | "stop" | "slow" | "read" | "resume"),
  ): Maker =>
  (random, { devices }) => ({ do: name, device: random.int(0, devices - 1) });
const onProcess =
  (
    name: "kill" | "start" | "freeze" | "thaw" | "stop process" | "deafen" | "hear" | "lose answer" | "cut gateway",
  ): Maker =>
  (random, { processes }) =>
    ({ do: name, process: random.int(0, processes - 1) }) as Act;
const plain =
  (name: "kill gateway" | "restart gateway" | "start gateway" | "empty redis" | "stop redis" | "start redis"): Maker =>
  () => ({ do: name });
const broken =
  (what: SqlFault["what"]): Maker =>
  (random, { processes }) => ({
    do: "break database",
    process: random.int(0, processes - 1),
    fault: {
      after: random.int(0, 12),
      at: random.chance(0.4) ? "commit" : "any",
      when: random.pick(["before", "after"] as const),
      what,
    },
  });

const CLIENTS: Choice[] = [
  { weight: 12, make: onDevice("say") },
  { weight: 4, make: onDevice("again") },
  { weight: 3, make: onDevice("drop") },
  {
    weight: 8,
    make: (random, { devices, processes }) => ({
      do: "connect",
      device: random.int(0, devices - 1),
      process: random.int(0, processes - 1),
    }),
  },
  { weight: 2, make: onDevice("slow") },
  { weight: 2, make: onDevice("read") },
  { weight: 2, make: onDevice("resume") },
  { weight: 6, make: (random) => ({ do: "advance", ms: random.pick([5, 50, 260, 1000, 2100]) }) },
  { weight: 2, make: (random) => ({ do: "pass", ms: random.pick([500, 1500, 3000]) }) },
];
const standStill: Maker = (random, { processes }) => ({
  do: "stand still",
  process: random.int(0, processes - 1),
  ms: random.int(1500, 7000),
});
const STOPS: Choice[] = [{ weight: 5, make: onDevice("stop") }];
/** Each schedule has some of these kinds of trouble, and not the others: rare meetings become likely. */
const TROUBLES: Choice[][] = [
  [
    { weight: 3, make: onProcess("kill") },
    { weight: 3, make: onProcess("start") },
    { weight: 4, make: broken("crash") },
  ],
  [
    { weight: 4, make: onProcess("freeze") },
    { weight: 4, make: onProcess("thaw") },
    { weight: 4, make: standStill },
  ],
  [{ weight: 5, make: broken("cut") }],
  [
    { weight: 2, make: plain("kill gateway") },
    { weight: 1, make: plain("restart gateway") },
    { weight: 3, make: plain("start gateway") },
  ],
  [
    { weight: 4, make: onProcess("cut gateway") },
    { weight: 1, make: onProcess("lose answer") },
  ],
  [
    { weight: 2, make: plain("empty redis") },
    { weight: 2, make: plain("stop redis") },
    { weight: 2, make: plain("start redis") },
  ],
  [
    { weight: 2, make: onProcess("deafen") },
    { weight: 2, make: onProcess("hear") },
  ],
  [
    { weight: 3, make: onProcess("stop process") },
    { weight: 3, make: onProcess("start") },
  ],
  [{ weight: 3, make: (random, { assistants }) => ({ do: "forget agent", assistant: random.int(0, assistants - 1) }) }],
];

/** Something is said, and in the middle of an answer whoever follows it stands still for longer than it may. */
function putDoze(random: Random, actions: Action[]): void {
  const at = random.int(0, actions.length - 2);
  const say = { do: "say", device: random.int(0, DEVICES - 1) } as const;
  const doze = { do: "doze", ms: random.int(4200, 7000) } as const;
  for (const [index, act] of [say, doze].entries())
    actions[at + index] = { ...act, id: at + index + 1, operations: random.int(0, 30) };
}

/** The schedule of a seed. */
export function makeSchedule(seed: number): Schedule {
  const random = createRandom(seed, "schedule");
  const calm = random.chance(0.15);
  const dozing = !calm && createRandom(seed, "doze").chance(0.1);
  const size = { processes: random.chance(0.25) ? 3 : 2, assistants: random.chance(0.25) ? 2 : 1, devices: 0 };
  size.devices = size.assistants * DEVICES;
  const troubles = calm || dozing ? [] : TROUBLES.filter(() => random.chance(0.35)).flat();
  const choices = [...CLIENTS, ...(random.chance(0.6) ? STOPS : []), ...troubles];
  const actions: Action[] = Array.from({ length: random.int(10, 34) }, (_, id) => {
    const act = random.weighted(choices, (choice) => choice.weight).make(random, size);
    return { ...act, id: id + 1, operations: random.chance(0.25) ? 400 : random.int(0, 30) };
  });
  if (dozing) putDoze(createRandom(seed, "doze at"), actions);
  const midnight = Date.UTC(2026, 10, 25);
  return {
    seed,
    calm,
    patient: calm || dozing || createRandom(seed, "patient").chance(0.3),
    model: calm ? "calm" : dozing ? "slow" : "any",
    notices: calm ? "good" : random.pick(["good", "good", "doubled", "lossy"] as const),
    processes: size.processes,
    assistants: size.assistants,
    dailyLimit: random.pick(planLimits),
    startsAt: midnight - (random.chance(0.15) ? random.int(0, 5_000) : random.int(3_600_000, 80_000_000)),
    actions,
  };
}

/** One line per action, to read. */
export function renderSchedule(schedule: Schedule): string {
  const { actions, startsAt, ...rest } = schedule;
  const lines = actions.map(({ id, operations, do: name, ...more }) => {
    const about = Object.entries(more).map(([key, value]) => `${key} ${JSON.stringify(value)}`);
    return `  ${String(id).padStart(3)}  ${[name, ...about].join(" ")}, then ${operations} operations`;
  });
  return [`${JSON.stringify(rest)} from ${new Date(startsAt).toISOString()}`, ...lines].join("\n");
}

export const devicesPerAssistant = DEVICES;
