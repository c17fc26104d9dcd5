/**
 * The gateway's frames as text. They are put together by hand: what the load gateway costs is taken from the same two
 * cores as what is measured. All texts are of plain characters that JSON does not escape.
 */

export interface RunFrames {
  runId: string;
  sessionKey: string;
  agentId: string;
}

/** Everything of an event but its last field, the number that each connection counts for itself. */
export type OpenFrame = string;

const model = `"api":"openai-completions","provider":"openai-custom","model":"gpt-5-nano"`;

function event(name: string, payload: string): OpenFrame {
  return `{"type":"event","event":"${name}","payload":${payload}`;
}

export function closeFrame(frame: OpenFrame, seq: number): string {
  return `${frame},"seq":${seq}}`;
}

function chat(run: RunFrames, seq: number, fields: string): OpenFrame {
  const about = `"runId":"${run.runId}","sessionKey":"${run.sessionKey}","agentId":"${run.agentId}"`;
  return event("chat", `{${about},"seq":${seq},${fields}}`);
}

function agent(run: RunFrames, seq: number, stream: string, data: string): OpenFrame {
  const about = `"sessionKey":"${run.sessionKey}","agentId":"${run.agentId}","seq":${seq},"ts":${Date.now()}`;
  const what = `"runId":"${run.runId}","stream":"${stream}","data":${data}`;
  return event("agent", `{${what},${about},"isHeartbeat":false}`);
}

function message(text: string): string {
  return `{"role":"assistant","content":[{"type":"text","text":"${text}"}],"timestamp":${Date.now()}}`;
}

/** What the real gateway says before the first text. */
export function openingFrames(run: RunFrames): OpenFrame[] {
  return ["preparing_workspace", "preparing_context", "starting_model"].flatMap((phase, i) => [
    chat(run, i + 1, `"state":"status","phase":"${phase}"`),
    agent(run, i + 1, "run_status", `{"phase":"${phase}"}`),
  ]);
}

/** One piece of text, which the real gateway tells twice, each time with all text so far. */
export function textFrames(run: RunFrames, seq: number, text: string, delta: string): OpenFrame[] {
  return [
    agent(run, seq, "assistant", `{"text":"${text}","delta":"${delta}","itemId":"${run.runId}:1"}`),
    chat(run, seq, `"state":"delta","deltaText":"${delta}","message":${message(text)}`),
  ];
}

export function closingFrames(run: RunFrames, seq: number, text: string): OpenFrame[] {
  return [
    agent(run, seq, "lifecycle", `{"phase":"end","stopReason":"stop","aborted":false}`),
    chat(run, seq, `"state":"final","stopReason":"stop","message":${message(text)}`),
  ];
}

export function abortedFrame(run: RunFrames, seq: number): OpenFrame {
  return chat(run, seq, `"state":"aborted","stopReason":"rpc"`);
}

/** The two rows that a turn leaves in the history. */
export function historyRows(run: RunFrames, seq: number, asked: string, text: string): string[] {
  const at = Date.now();
  const usage = `{"input":120,"output":80,"totalTokens":200,"cacheRead":0,"cacheWrite":0,"cost":{"input":0.000006,"output":0.000032,"cacheRead":0,"cacheWrite":0,"total":0.000038}}`;
  const row = (n: number, runId: string) =>
    `"timestamp":${at},"__openclaw":{"id":"${run.runId}-${n}","seq":${seq + n}${runId},"recordTimestampMs":${at}}`;
  return [
    `{"role":"user","content":${JSON.stringify(asked)},"idempotencyKey":"${run.runId}:user",${row(0, "")}}`,
    `{"role":"assistant","content":[{"type":"text","text":"${text}"}],${model},"usage":${usage},"stopReason":"stop",${row(1, `,"runId":"${run.runId}"`)}}`,
  ];
}
