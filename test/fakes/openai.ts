import {
  ConnectionCut,
  cutResponse,
  faultBody,
  faultResponse,
  HttpFault,
  streamResponse,
  suffer,
  withFirst,
  type Fault,
} from "./openaiHttp.ts";
import { audioRoute, createFakeAudio, type FakeAudio } from "./openaiAudio.ts";
import { personaAnswer } from "./persona.ts";

export type ContentPart = { type: string; text?: string };
export type ToolCall = { id: string; type: "function"; function: { name: string; arguments: string } };
export type ChatMessage = {
  role: "system" | "developer" | "user" | "assistant" | "tool";
  content?: string | ContentPart[] | null;
  tool_calls?: ToolCall[];
  tool_call_id?: string;
};
export type ToolOffer = {
  type: "function";
  function: { name: string; description?: string; parameters?: { properties?: Record<string, unknown> } };
};
/** The body of one `POST /v1/chat/completions`; `signal` aborts when the client goes away. */
export type ChatRequest = {
  model: string;
  messages: ChatMessage[];
  tools?: ToolOffer[];
  stream?: boolean;
  stream_options?: { include_usage?: boolean };
  signal?: AbortSignal;
};

/** One thing the model does. */
export type Step = { text: string } | { tool: string; arguments: Record<string, unknown> } | Fault;
export type Answer = (request: ChatRequest) => AsyncIterable<Step> | Iterable<Step>;

export type FakeOpenAi = {
  /** Base URL with the version: `http://127.0.0.1:PORT/v1`. */
  url: string;
  /** The last 200 chat requests, most recent last. */
  requests: ChatRequest[];
  /** What the model does; may be replaced at any time, also by a test in the middle of a conversation. */
  answer: Answer;
  /** Calls being answered now: 0 shows that an aborted one really stopped. */
  running: number;
  /** Transcription and speech. */
  audio: FakeAudio;
  close(): Promise<void>;
};

const requestsKept = 200;

type Output = { text: string } | { call: ToolCall };

/** Runs an answer's steps: waits, hangs and faults happen here, what the client sees comes out. */
async function* produce(answer: Answer, request: ChatRequest, signal: AbortSignal): AsyncGenerator<Output> {
  for await (const step of answer(request)) {
    if (signal.aborted) return;
    if ("text" in step) yield step;
    else if (!("tool" in step)) await suffer(step, signal);
    else {
      const id = `call_${crypto.randomUUID().replaceAll("-", "").slice(0, 24)}`;
      yield {
        call: { id, type: "function", function: { name: step.tool, arguments: JSON.stringify(step.arguments) } },
      };
    }
    if (signal.aborted) return;
  }
}

function usage(request: ChatRequest, completionChars: number) {
  const prompt = Math.ceil(JSON.stringify([request.messages, request.tools ?? []]).length / 4);
  const completion = Math.ceil(completionChars / 4);
  return { prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt + completion };
}

function outputChars(output: Output): number {
  return "text" in output
    ? output.text.length
    : output.call.function.name.length + output.call.function.arguments.length;
}

function completionFrame(request: ChatRequest, object: string) {
  const id = `chatcmpl-${crypto.randomUUID()}`;
  return { id, object, created: Math.floor(Date.now() / 1000), model: request.model };
}

async function wholeResponse(request: ChatRequest, outputs: AsyncIterable<Output>): Promise<Response> {
  let text = "";
  let chars = 0;
  const calls: ToolCall[] = [];
  for await (const output of outputs) {
    chars += outputChars(output);
    if ("text" in output) text += output.text;
    else calls.push(output.call);
  }
  const message = {
    role: "assistant",
    content: text || (calls.length > 0 ? null : ""),
    ...(calls.length > 0 && { tool_calls: calls }),
  };
  const choice = { index: 0, message, logprobs: null, finish_reason: calls.length > 0 ? "tool_calls" : "stop" };
  return Response.json({
    ...completionFrame(request, "chat.completion"),
    choices: [choice],
    usage: usage(request, chars),
  });
}

async function* sseLines(request: ChatRequest, outputs: AsyncIterable<Output>): AsyncGenerator<string> {
  const frame = completionFrame(request, "chat.completion.chunk");
  const line = (delta: object, finish: string | null = null) =>
    `data: ${JSON.stringify({ ...frame, choices: [{ index: 0, delta, logprobs: null, finish_reason: finish }] })}\n\n`;
  let chars = 0;
  let calls = 0;
  yield line({ role: "assistant", content: "" });
  try {
    for await (const output of outputs) {
      chars += outputChars(output);
      if ("text" in output) yield line({ content: output.text });
      else yield line({ tool_calls: [{ index: calls++, ...output.call }] });
    }
  } catch (error) {
    if (!(error instanceof HttpFault)) throw error;
    yield `data: ${JSON.stringify(faultBody(error))}\n\n`;
    return;
  }
  yield line({}, calls > 0 ? "tool_calls" : "stop");
  if (request.stream_options?.include_usage) {
    yield `data: ${JSON.stringify({ ...frame, choices: [], usage: usage(request, chars) })}\n\n`;
  }
  yield "data: [DONE]\n\n";
}

const SSE = { "content-type": "text/event-stream", "cache-control": "no-cache" };

async function* encoded(lines: AsyncIterable<string>): AsyncGenerator<Uint8Array> {
  const encoder = new TextEncoder();
  for await (const line of lines) yield encoder.encode(line);
}

async function readChatRequest(httpRequest: Request): Promise<ChatRequest> {
  const body: unknown = await httpRequest.json().catch(() => undefined);
  if (typeof body !== "object" || body === null) throw new HttpFault(400, "We could not parse the JSON body.");
  if (!("messages" in body) || !Array.isArray(body.messages) || body.messages.length === 0) {
    throw new HttpFault(400, "Missing required parameter: 'messages'.");
  }
  if (!("model" in body) || typeof body.model !== "string")
    throw new HttpFault(400, "you must provide a model parameter");
  return { ...(body as ChatRequest), signal: httpRequest.signal };
}

async function completeChat(fake: FakeOpenAi, httpRequest: Request): Promise<Response> {
  const request = await readChatRequest(httpRequest);
  fake.requests.push(request);
  if (fake.requests.length > requestsKept) fake.requests.shift();
  fake.running += 1;
  let finished = false;
  const finish = () => {
    if (!finished) fake.running -= 1;
    finished = true;
  };
  httpRequest.signal.addEventListener("abort", finish);
  try {
    const outputs = produce(fake.answer, request, httpRequest.signal);
    // The first output is awaited before any header is sent, so that a fault can still be an HTTP status.
    const all = withFirst(await outputs.next(), outputs);
    if (request.stream) return streamResponse(encoded(sseLines(request, all)), SSE, finish);
    const response = await wholeResponse(request, all);
    finish();
    return response;
  } catch (error) {
    finish();
    if (error instanceof ConnectionCut) return cutResponse();
    throw error;
  }
}

async function route(fake: FakeOpenAi, apiKey: string | undefined, httpRequest: Request): Promise<Response> {
  const { pathname } = new URL(httpRequest.url);
  if (apiKey !== undefined && httpRequest.headers.get("authorization") !== `Bearer ${apiKey}`) {
    throw new HttpFault(401, "Incorrect API key provided.");
  }
  if (httpRequest.method === "POST" && pathname === "/v1/chat/completions") return completeChat(fake, httpRequest);
  const audio = httpRequest.method === "POST" ? await audioRoute(fake.audio, pathname, httpRequest) : null;
  if (audio) return audio;
  if (httpRequest.method === "GET" && pathname === "/v1/models") {
    const model = { id: "gpt-5-nano", object: "model", created: 1_754_000_000, owned_by: "reef" };
    return Response.json({ object: "list", data: [model] });
  }
  throw new HttpFault(404, `Invalid URL (${httpRequest.method} ${pathname})`);
}

/**
 * Starts a local server that speaks OpenAI's chat completions protocol, streamed or whole, and answers as `answer`
 * says (the scripted persona when absent); it hears and speaks as `audio` says. With `apiKey` any other key gets 401. Port 0 (the default) takes a free one.
 */
export async function startFakeOpenAi(
  options: { port?: number; answer?: Answer; apiKey?: string } = {},
): Promise<FakeOpenAi> {
  const server = Bun.serve({
    port: options.port ?? 0,
    hostname: "127.0.0.1",
    idleTimeout: 0,
    async fetch(httpRequest): Promise<Response> {
      try {
        return await route(fake, options.apiKey, httpRequest);
      } catch (error) {
        // Anything else is a mistake in the test's own script: say so instead of looking like the provider.
        return faultResponse(
          error instanceof HttpFault ? error : new HttpFault(500, `The script failed: ${String(error)}`),
        );
      }
    },
  });
  const fake: FakeOpenAi = {
    url: `http://127.0.0.1:${server.port}/v1`,
    requests: [],
    answer: options.answer ?? personaAnswer(),
    running: 0,
    audio: createFakeAudio(),
    close: () => server.stop(true),
  };
  return fake;
}
