import type { Server, ServerWebSocket } from "bun";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { GatewayConfig } from "./gatewayConfig.ts";
import { connectRefusal, helloOk, httpAnswer, type ConnectParams } from "./gatewayHandshake.ts";
import { call, refusal } from "./gatewayMethods.ts";
import { GatewayRuns, type Reply, type SendParams } from "./gatewayRuns.ts";
import { GatewayStore } from "./gatewayStore.ts";
import type { FakeAnswer, FakeGateway, FakeGatewayOptions, FakeGatewayState } from "./gatewayTypes.ts";

export type * from "./gatewayTypes.ts";

type Peer = {
  id: string;
  origin: string | null;
  scopes: string[] | null;
  scoped: boolean;
  keys: Set<string>;
  seq: number;
};
type Socket = ServerWebSocket<Peer>;
type Request = { type?: string; id?: string; method?: string; params?: Record<string, unknown> };

async function* echo(turn: { text: string }) {
  yield { text: "Echo: " };
  for (const word of turn.text.split(/(?<=\s)/)) yield { text: word };
}

class Gateway implements FakeGateway {
  bootId: string = crypto.randomUUID();
  readonly dir: string;
  readonly port: number;
  readonly state: FakeGatewayState;
  private readonly bootedAt = Date.now();
  private readonly sockets = new Set<Socket>();
  private readonly server: Server<Peer>;
  private readonly ticks: ReturnType<typeof setInterval>;
  private readonly config: GatewayConfig;
  private readonly unfinishedDeletions = new Map<string, string>();
  private store: GatewayStore;
  private runs: GatewayRuns;
  private answer: FakeAnswer;
  private ready = true;
  private hold: boolean | "lost" = false;
  private held: (() => void)[] = [];
  private stopped = false;

  constructor(private readonly options: FakeGatewayOptions) {
    this.dir = options.dir;
    this.state = options.state ?? { sends: [], modelCalls: [] };
    this.answer = options.answer ?? echo;
    for (const folder of ["state", "workspaces", "home"]) mkdirSync(join(this.dir, folder), { recursive: true });
    const reloadMs = options.reloadMs ?? 50;
    this.config = new GatewayConfig({
      dir: this.dir,
      hashKey: options.token,
      reloadMs,
      onApplied: (hash) => this.applied(hash),
    });
    this.store = new GatewayStore(join(this.dir, "state"));
    this.runs = this.newRuns();
    this.ticks = setInterval(() => this.emit("tick", { ts: Date.now() }), this.tickIntervalMs());
    try {
      this.server = this.serve(options.port ?? 0);
    } catch (error) {
      clearInterval(this.ticks);
      this.config.close();
      throw error;
    }
    this.port = this.server.port ?? 0;
    for (const agentId of this.agents) this.recover(agentId);
  }

  get url(): string {
    return `ws://127.0.0.1:${this.port}`;
  }
  get sends() {
    return this.state.sends;
  }
  get modelCalls() {
    return this.state.modelCalls;
  }
  get connections(): number {
    return [...this.sockets].filter((socket) => socket.data.scopes !== null).length;
  }
  get running(): string[] {
    return this.runs.running();
  }
  get agents(): string[] {
    return Object.keys(this.config.agents);
  }
  get rejectedConfigs(): string[] {
    return this.config.rejected;
  }

  setAnswer(answer: FakeAnswer): void {
    this.answer = answer;
  }

  setReady(ready: boolean): void {
    this.ready = ready;
  }

  dropConnections(): void {
    for (const socket of this.sockets) socket.terminate();
  }

  holdSends(mode: boolean | "lost"): void {
    this.hold = mode;
    if (mode === false) for (const release of this.held.splice(0)) release();
  }

  async shutdown(options: { drainMs?: number } = {}): Promise<void> {
    this.ready = false;
    this.runs.draining = true;
    if (options.drainMs) await this.runs.drained(options.drainMs);
    if (this.stopped) return;
    this.goodbye({ reason: "gateway stopping" });
    await this.stop();
  }

  async stop(): Promise<void> {
    if (this.stopped) return;
    this.stopped = true;
    clearInterval(this.ticks);
    this.config.close();
    this.runs.kill();
    this.store.close();
    this.dropConnections();
    await this.server.stop(true);
  }

  async restart(options: Partial<FakeGatewayOptions> = {}): Promise<FakeGateway> {
    const { port, state, answer } = this;
    await this.stop();
    return startFakeGateway({ ...this.options, port, state, answer, ...options });
  }

  private tickIntervalMs(): number {
    return this.options.tickIntervalMs ?? 30_000;
  }

  private newRuns(): GatewayRuns {
    return new GatewayRuns({
      store: this.store,
      emit: (event, payload, sessionKey) => this.emit(event, payload, sessionKey),
      configured: (agentId) => agentId in this.config.agents,
      answer: () => this.answer,
      onModelCall: ({ agentId, sessionKey, runId, text }) =>
        this.state.modelCalls.push({ agentId, sessionKey, runId, text }),
    });
  }

  private recover(agentId: string): void {
    if (!this.store.isDeleted(agentId)) this.runs.recover(agentId, this.options.resumeInterrupted ?? false);
  }

  private applied(hash: string): void {
    this.emit("config.changed", { path: this.config.file, hash, ts: Date.now() });
    this.emit("chat.metadata.changed", {});
    // A deleted id that is configured again breaks the reload: 2026.9.3 restarts itself.
    if (this.agents.some((agentId) => this.store.isDeleted(agentId))) this.restartItself();
  }

  private restartItself(): void {
    this.goodbye({ reason: "gateway restarting", restartExpectedMs: 1500 });
    this.runs.kill();
    this.store.close();
    this.store = new GatewayStore(join(this.dir, "state"));
    this.runs = this.newRuns();
    this.bootId = crypto.randomUUID();
    for (const agentId of this.agents) this.recover(agentId);
  }

  private goodbye(payload: Record<string, unknown>): void {
    this.emit("shutdown", payload);
    for (const socket of this.sockets) socket.close(1012, "service restart");
    this.sockets.clear();
  }

  private serve(port: number): Server<Peer> {
    return Bun.serve<Peer>({
      hostname: "127.0.0.1",
      port,
      fetch: (request, server) => this.http(request, server),
      websocket: {
        maxPayloadLength: 26214400,
        idleTimeout: 0,
        open: (socket) => this.opened(socket),
        message: (socket, data) => this.received(socket, String(data)),
        close: (socket) => void this.sockets.delete(socket),
      },
    });
  }

  private http(request: globalThis.Request, server: Server<Peer>): Response | undefined {
    const answer = httpAnswer(request, { ready: this.ready, uptimeMs: Date.now() - this.bootedAt });
    if (answer) return answer;
    const origin = request.headers.get("origin");
    const data: Peer = { id: crypto.randomUUID(), origin, scopes: null, scoped: false, keys: new Set(), seq: 0 };
    return server.upgrade(request, { data }) ? undefined : new Response("Not Found", { status: 404 });
  }

  private opened(socket: Socket): void {
    this.sockets.add(socket);
    const payload = { nonce: crypto.randomUUID(), ts: Date.now() };
    socket.send(JSON.stringify({ type: "event", event: "connect.challenge", payload }));
  }

  private received(socket: Socket, text: string): void {
    let frame: Request;
    try {
      frame = JSON.parse(text) as Request;
    } catch {
      socket.close(1000);
      return;
    }
    const { id = "", method = "", params = {} } = frame;
    if (socket.data.scopes === null) this.handshake(socket, id, method, params);
    else this.dispatch(socket, id, method, params, socket.data.scopes);
  }

  private handshake(socket: Socket, id: string, method: string, params: ConnectParams): void {
    const message = "invalid handshake: first request must be connect";
    const early = method === "connect" ? null : { error: { code: "INVALID_REQUEST", message }, close: 1008 };
    const refused = early ?? connectRefusal(params, { ...this.options, ready: this.ready, origin: socket.data.origin });
    if (refused) {
      this.reply(socket, id, { ok: false, error: refused.error });
      socket.close(refused.close, refused.error.message);
      return;
    }
    const scopes = params.scopes ?? [];
    socket.data.scopes = scopes;
    socket.data.scoped = params.caps?.includes("session-scoped-events") ?? false;
    const about = { bootId: this.bootId, connId: socket.data.id, scopes, tickIntervalMs: this.tickIntervalMs() };
    const times = { appliedConfigHash: this.config.appliedHash(), uptimeMs: Date.now() - this.bootedAt };
    this.reply(socket, id, { ok: true, payload: helloOk({ ...about, ...times }) });
  }

  private dispatch(
    socket: Socket,
    id: string,
    method: string,
    params: Record<string, unknown>,
    scopes: string[],
  ): void {
    const error = refusal(method, params, scopes);
    if (error) return this.reply(socket, id, { ok: false, error });
    try {
      if (method === "chat.send") this.send(socket, id, params as SendParams);
      else {
        const { dir, config, store, runs, unfinishedDeletions } = this;
        this.reply(
          socket,
          id,
          call({ dir, config, store, runs, unfinishedDeletions }, method, params, socket.data.keys),
        );
      }
    } catch (failure) {
      this.reply(socket, id, { ok: false, error: { code: "UNAVAILABLE", message: String(failure) } });
    }
  }

  private send(socket: Socket, id: string, params: SendParams): void {
    const { sessionKey, message, idempotencyKey } = params;
    const noted = { at: Date.now(), sessionKey, message, idempotencyKey };
    if (this.hold === "lost") {
      this.sends.push({ ...noted, outcome: "lost" });
      return;
    }
    const { reply, outcome, start } = this.runs.send(params);
    this.sends.push({ ...noted, outcome });
    if (this.hold) this.held.push(() => this.reply(socket, id, reply));
    else this.reply(socket, id, reply);
    start?.();
  }

  private reply(socket: Socket, id: string, reply: Reply): void {
    socket.send(JSON.stringify({ type: "res", id, ...reply }));
  }

  private emit(event: string, payload: Record<string, unknown>, sessionKey?: string): void {
    for (const socket of this.sockets) {
      const { scopes, scoped, keys } = socket.data;
      if (scopes === null) continue;
      const onlySubscribed = scoped || event === "session.message";
      if (sessionKey !== undefined && onlySubscribed && !keys.has(sessionKey)) continue;
      socket.data.seq += 1;
      socket.send(JSON.stringify({ type: "event", event, payload, seq: socket.data.seq }));
    }
  }
}

/**
 * Starts a double of the OpenClaw gateway (2026.9.3, protocol 4) in this process. Conversations are files under
 * `dir/state`, as the real one's are. Rejects when `dir/openclaw.json` is missing or invalid or the port is taken.
 */
export async function startFakeGateway(options: FakeGatewayOptions): Promise<FakeGateway> {
  return new Gateway(options);
}
