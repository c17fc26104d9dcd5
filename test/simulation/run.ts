import { devicesPerAssistant, type Action, type Schedule } from "./actions.ts";
import { Device } from "./device.ts";
import { SimulatedGateway } from "./gateway.ts";
import { CALL_TIMEOUT_MS } from "./gatewayClient.ts";
import { planOf, type Lane } from "./lane.ts";
import { budgets, RESYNC_MS, SimulatedProcess } from "./process.ts";
import { createRandom, type Random } from "./random.ts";
import { SimulatedRedis } from "./redis.ts";
import type { Surroundings } from "./surroundings.ts";
import { judge } from "./truth.ts";
import { World } from "./world.ts";

export interface Outcome {
  violations: string[];
  trace: string[];
}

const RECONCILER_WEIGHT = 4;
/** Longer than every budget together. */
const SETTLE_MS = 150_000;
const MOST_OPERATIONS = 20_000;
const PASSING_MS = 300;
const MOST_UNTIL_FOLLOWED = 300;

/** One schedule as it runs. */
export class Simulation {
  readonly world: World;
  readonly around: Surroundings;
  readonly gateway: SimulatedGateway;
  readonly redis: SimulatedRedis;
  readonly processes: SimulatedProcess[] = [];
  readonly devices: Device[] = [];
  /** Everybody that ever was: a killed one may have said something. */
  readonly userId: string;
  readonly assistantIds: string[];
  readonly agentIds: string[];
  /** What was done to it, to tell what may be excused. */
  readonly happened = new Set<string>();
  freezes = 0;
  private readonly random: Random;
  private count = 0;

  constructor(
    readonly lane: Lane,
    readonly schedule: Schedule,
    tracing: boolean,
  ) {
    const unique = crypto.randomUUID().slice(0, 18);
    this.random = createRandom(schedule.seed, "ids");
    this.world = new World(lane, schedule.startsAt, tracing);
    this.gateway = new SimulatedGateway(this.world, schedule.seed, schedule.model, (key) =>
      this.around.ended.some((end) => end.turnId === key),
    );
    this.redis = new SimulatedRedis(this.world);
    this.userId = crypto.randomUUID();
    this.assistantIds = Array.from({ length: schedule.assistants }, () => crypto.randomUUID());
    this.agentIds = this.assistantIds.map((_, index) => `agent_${unique}_${index}`);
    this.around = {
      world: this.world,
      lane,
      random: createRandom(schedule.seed, "surroundings"),
      gateway: this.gateway,
      redis: this.redis,
      gatewayId: `sim-${unique}`,
      ended: [],
      notified: (payload) => this.notified(payload),
    };
  }

  async run(): Promise<Outcome> {
    await this.prepare();
    for (const action of this.schedule.actions) {
      const random = createRandom(this.schedule.seed, "order", action.id);
      this.world.note(() => `ACTION ${JSON.stringify(action)}`);
      await this.act(action, random);
      await this.world.run(random, action.operations);
    }
    const unsettled = await this.settle();
    const violations = await judge(this, unsettled);
    for (const process of this.processes) process.kill();
    await this.world.quiet();
    return { violations, trace: this.world.trace };
  }

  private async prepare(): Promise<void> {
    const { lane, schedule, userId } = this;
    const { admin: sql } = lane;
    await lane.setTime(schedule.startsAt);
    await sql`insert into gateways (id, working_set) values (${this.around.gatewayId}, 30)`;
    await sql`insert into users (id, email) values (${userId}, ${`${userId}@example.org`})`;
    await sql`insert into subscriptions (user_id, plan) values (${userId}, ${planOf(schedule.dailyLimit)})`;
    for (const [index, id] of this.assistantIds.entries()) {
      await sql`insert into assistants (id, user_id, gateway_id, agent_id, voice, model, state)
        values (${id}, ${userId}, ${this.around.gatewayId}, ${this.agentIds[index]!}, 'nova', 'm', 'awake')`;
      for (let n = 0; n < devicesPerAssistant; n++)
        this.devices.push(new Device(`d${this.devices.length}`, userId, id, crypto.randomUUID(), this.world));
    }
    for (let slot = 0; slot < schedule.processes; slot++) this.startProcess(slot);
    await this.world.run(createRandom(schedule.seed, "order", 0), MOST_OPERATIONS);
    for (const [index, device] of this.devices.entries()) device.connect(this.processes[index % schedule.processes]!);
  }

  private startProcess(slot: number): void {
    this.processes[slot] = new SimulatedProcess(`p${slot}.${++this.count}`, this.around);
  }

  private notified(payload: string): void {
    const { kind, id } = JSON.parse(payload) as { kind: string; id: string };
    if (kind === "gateway") return this.reconcileSoon();
    for (const process of this.processes) {
      if (process.dead || process.deaf) continue;
      const hear = {
        channel: `notify:${process.name}`,
        owner: process,
        label: `hears of ${kind}`,
        run: () => process.hear(kind, id),
      };
      if (this.schedule.notices === "lossy" && this.around.random.chance(0.08)) {
        this.happened.add("notice lost");
        continue;
      }
      this.world.add(hear);
      if (this.schedule.notices === "doubled" && this.around.random.chance(0.2)) this.world.add(hear);
    }
  }

  /** All that the reconciler does here: who should be awake is configured again. */
  private reconcileSoon(): void {
    const run = async () => {
      this.gateway.missing.clear();
      await this.lane.pool`update assistants set state = 'awake' where user_id = ${this.userId} and state <> 'awake'`;
      for (const id of this.assistantIds) this.notified(JSON.stringify({ kind: "assistant", id }));
    };
    const { outside } = this.world;
    this.world.add({ channel: "reconciler", owner: outside, label: "reconciles", weight: RECONCILER_WEIGHT, run });
  }

  private async act(action: Action, random: Random): Promise<void> {
    if ("device" in action) return this.actOnDevice(action, this.devices[action.device]!, random);
    if ("process" in action) return this.actOnProcess(action, this.processes[action.process]!, random);
    if (action.do === "advance") return this.advance(action.ms, random);
    if (action.do === "pass") return this.pass(action.ms, random);
    if (action.do === "doze") return this.doze(action.ms, random);
    this.happened.add(action.do);
    if (action.do === "forget agent") this.gateway.missing.add(this.agentIds[action.assistant]!);
    else if (action.do === "kill gateway") this.gateway.kill(false);
    else if (action.do === "restart gateway") this.gateway.kill(true);
    else if (action.do === "start gateway") this.gateway.start();
    else if (action.do === "empty redis") this.redis.empty();
    else if (action.do === "stop redis") this.redis.stop();
    else if (action.do === "start redis") this.redis.start();
  }

  private async advance(ms: number, random: Random): Promise<void> {
    if (this.schedule.patient) return this.pass(ms, random);
    // Who has work to do and gets no time stands still.
    if (!this.world.idle() || ms >= budgets.leaseMs) this.happened.add("starved");
    return this.world.advance(ms);
  }

  /** Time goes by, and everybody does what there is to do. */
  private async pass(ms: number, random: Random): Promise<void> {
    const end = this.world.now + ms;
    while (this.world.now < end) {
      await this.world.run(random, MOST_OPERATIONS);
      await this.world.advance(Math.min(PASSING_MS, end - this.world.now));
    }
  }

  /** One process stands still while the others go on. */
  private async standStill(process: SimulatedProcess, ms: number, random: Random): Promise<void> {
    this.freeze(process);
    await this.pass(ms, random);
    process.thaw();
    // As an event loop does that wakes up: first its timers, then what it hears.
    if (random.chance(0.5)) await this.world.runTimersOf(process);
  }

  /** The process that follows a run stands still in the middle of it. */
  private async doze(ms: number, random: Random): Promise<void> {
    const find = () => this.processes.find((process) => process.running() > 0 && this.gateway.running().length > 0);
    for (let n = 0; n < MOST_UNTIL_FOLLOWED && !find(); n++) await this.world.run(random, 1);
    const process = find();
    if (!process) return;
    this.happened.add("stand still");
    await this.standStill(process, ms, random);
  }

  private actOnDevice(action: Extract<Action, { device: number }>, device: Device, random: Random): void {
    if (action.do === "connect") return device.connect(this.processes[action.process]!);
    const said = device.said.length > 0 ? random.pick(device.said) : null;
    if (action.do === "say") device.say(this.random.uuid(), `m${++this.count}`);
    else if (action.do === "again") void (said && device.sendAgain(said));
    else if (action.do === "drop") device.connection?.drop(random.chance(0.5));
    else if (action.do === "stop") device.connection?.send({ type: "stop" });
    else if (action.do === "slow") device.connection?.readSlowly();
    else if (action.do === "read") device.connection?.readOn();
    else device.resume();
  }

  private async actOnProcess(action: Extract<Action, { process: number }>, process: SimulatedProcess, random: Random) {
    if (action.do === "connect") return;
    if (action.do === "start") return void (process.dead && this.startProcess(action.process));
    if (process.dead) return;
    this.happened.add(action.do);
    if (action.do === "break database") process.database.arm(action.fault);
    else if (action.do === "kill") process.kill();
    else if (action.do === "stand still") await this.standStill(process, action.ms, random);
    else if (action.do === "freeze") this.freeze(process);
    else if (action.do === "thaw") process.thaw();
    else if (action.do === "stop process") process.stop();
    else if (action.do === "deafen") process.deaf = true;
    else if (action.do === "hear") process.listenAgain();
    else if (action.do === "cut gateway") process.gateway.lose();
    else if (action.do === "lose answer") process.gateway.answersToLose += 1;
  }

  private freeze(process: SimulatedProcess): void {
    this.freezes += 1;
    process.freeze();
    if (!this.processes.some((one) => !one.dead && !one.frozen)) this.happened.add("starved");
  }

  /** Ends all trouble and lets time pass until everything is over. Returns what is not. */
  private async settle(): Promise<string[]> {
    const random = createRandom(this.schedule.seed, "order", "settle");
    this.world.note(() => "ALL TROUBLE ENDS");
    this.gateway.start();
    this.redis.start();
    this.reconcileSoon();
    const end = this.world.now + SETTLE_MS;
    for (;;) {
      this.mend(random);
      if (await this.world.run(random, MOST_OPERATIONS)) return ["it never comes to rest"];
      if (await this.isOver()) break;
      if (this.world.now > end) return ["after all budgets something is not over"];
      await this.world.advance(random.int(150, 450));
    }
    // Retries of a failed read need a second; what no notice told of is found by the next comparison.
    const lost = this.happened.has("deafen") || this.happened.has("notice lost");
    // A call whose answer was lost is waited for until its own end.
    const late = this.happened.has("lose answer");
    for (const ms of [1100, 1100, ...(late ? [CALL_TIMEOUT_MS] : []), ...(lost ? [RESYNC_MS + 1100, 1100] : [])]) {
      await this.world.advance(ms);
      await this.world.run(random, MOST_OPERATIONS);
    }
    return [];
  }

  private mend(random: Random): void {
    for (const [slot, process] of this.processes.entries()) {
      if (process.dead) this.startProcess(slot);
      process.thaw();
      if (process.deaf) process.listenAgain();
      process.gateway.answersToLose = 0;
      process.database.disarm();
    }
    const living = this.processes.filter((process) => !process.dead && !process.stopping);
    for (const device of this.devices) {
      device.connection?.readOn();
      if (!device.connection && living.length > 0) device.connect(random.pick(living));
      for (const said of device.said) if (!said.ack && !said.refused) device.sendAgain(said);
    }
  }

  private async isOver(): Promise<boolean> {
    const waits = this.devices.some((device) => device.said.some((said) => !said.ack && !said.refused));
    if (waits || this.devices.some((device) => !device.connection)) return false;
    const [row] = await this.lane.admin`
      select 1 from turns where user_id = ${this.userId} and status in ('queued', 'dispatched', 'streaming') limit 1`;
    return row === undefined;
  }
}
