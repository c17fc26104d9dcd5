/** The reasons of a failed run, as `errorDetail.failoverReason` says them; `unexplained` comes without `errorDetail`. */
export type FakeError = "rate_limit" | "auth" | "server_error" | "timeout" | "format" | "unexplained";

/**
 * One thing the model does in a run. `wait` is a gate in a test's hand; `tool` ends the model message and starts the
 * next one (`preamble` is text that is in the history only); `replace` swaps all text shown so far; `retrying` starts
 * the model message again, with the broken one still glued in front; `hang` stays silent until the run is aborted.
 */
export type FakeStep =
  | { text: string }
  | { delayMs: number }
  | { wait: Promise<void> }
  | { tool: string; preamble?: string }
  | { replace: string }
  | { usage: { input: number; output: number } }
  | { retrying: true }
  | { error: FakeError }
  | { hang: true };

/** What the model sees: the user's text without U+2060, and what was said before, oldest first. */
export interface FakeTurn {
  agentId: string;
  sessionKey: string;
  runId: string;
  text: string;
  history: { role: "user" | "assistant"; text: string }[];
}

export type FakeAnswer = (turn: FakeTurn) => AsyncIterable<FakeStep>;

export type FakeSendOutcome =
  "started" | "in_flight" | "ok" | "timeout" | "error" | "conflict" | "refused" | "stop_word" | "lost";

/** One `chat.send` that arrived, duplicates included. `message` is as sent, U+2060 and all. */
export interface FakeSend {
  at: number;
  sessionKey: string;
  message: string;
  idempotencyKey: string;
  outcome: FakeSendOutcome;
}

/** One call of the model: a turn that ran twice is here twice. */
export interface FakeModelCall {
  agentId: string;
  sessionKey: string;
  runId: string;
  text: string;
}

/** What a test wants to see over restarts. Conversations need no state: they are files under `dir/state`. */
export interface FakeGatewayState {
  sends: FakeSend[];
  modelCalls: FakeModelCall[];
}

export interface FakeGatewayOptions {
  /** Holds `openclaw.json`, `state/`, `workspaces/` and `home/`. */
  dir: string;
  token: string;
  /** 0 or absent: any free port. */
  port?: number;
  /** Milliseconds from the last change of the file to its application. */
  reloadMs?: number;
  tickIntervalMs?: number;
  answer?: FakeAnswer;
  state?: FakeGatewayState;
  /** The real gateway goes on with a run that its death interrupted, under a new run id. Off: the run stays dead. */
  resumeInterrupted?: boolean;
}

export interface FakeGateway {
  /** `ws://127.0.0.1:PORT` */
  url: string;
  port: number;
  dir: string;
  /** Changes with every start, also when the gateway restarts itself (a deleted agent id was configured again). */
  readonly bootId: string;
  state: FakeGatewayState;
  sends: FakeSend[];
  modelCalls: FakeModelCall[];
  /** Open sockets that passed the handshake. */
  readonly connections: number;
  /** Run ids that are being answered now. */
  readonly running: string[];
  /** Ids of the agents in the applied configuration. */
  readonly agents: string[];
  /** Why files were not applied, oldest first. */
  readonly rejectedConfigs: string[];
  setAnswer(answer: FakeAnswer): void;
  /** Not ready: `/readyz` 503, `connect` answered UNAVAILABLE and closed with 1013. */
  setReady(ready: boolean): void;
  /** Cuts every socket without a close frame (the client sees 1006); runs go on. */
  dropConnections(): void;
  /**
   * true: a send runs, its response is kept back until `false`. "lost": a send is noted in `sends` and nothing else
   * happens, as if the process died before it stored the message.
   */
  holdSends(mode: boolean | "lost"): void;
  /** SIGTERM: refuses sends, waits `drainMs` (default 0) for runs, event `shutdown`, close 1012, then stops. */
  shutdown(options?: { drainMs?: number }): Promise<void>;
  /** SIGKILL: sockets cut, runs die without a word, the user's row stays in the history. */
  stop(): Promise<void>;
  /** Stops if need be and starts again on the same port, folder and state. */
  restart(options?: Partial<FakeGatewayOptions>): Promise<FakeGateway>;
}

export interface FakeUsage {
  input: number;
  output: number;
  totalTokens: number;
  cacheRead: number;
  cacheWrite: number;
  cost: { input: number; output: number; cacheRead: number; cacheWrite: number; total: number };
}

/** A row of `chat.history`, as the real gateway writes it. */
export interface FakeRow {
  role: "user" | "assistant" | "toolResult" | "system";
  content: string | Record<string, unknown>[];
  timestamp: number;
  idempotencyKey?: string;
  api?: string;
  provider?: string;
  model?: string;
  usage?: FakeUsage;
  stopReason?: string;
  responseId?: string;
  toolCallId?: string;
  toolName?: string;
  isError?: boolean;
  openclawAbort?: { aborted: true; origin: "rpc" | "stop-command"; runId: string };
  openclawStreamFallback?: { replacementText: string; source: string; itemId: string };
  provenance?: { kind: string; sourceSessionKey: string; sourceTool: string };
  __openclaw: {
    id: string;
    seq: number;
    runId?: string;
    kind?: string;
    idempotencyKey?: string;
    recordTimestampMs: number;
    transcriptPosition: { source: string; rawSeq: number };
  };
}
