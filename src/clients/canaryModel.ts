import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { text as readText } from "node:stream/consumers";
import { z } from "zod";

const messageSchema = z.looseObject({
  role: z.string(),
  content: z.union([z.string(), z.array(z.looseObject({ text: z.string().optional() }))]).nullish(),
  tool_call_id: z.string().optional(),
});
const requestSchema = z.looseObject({
  messages: z.array(messageSchema).min(1),
  tools: z.array(z.looseObject({ function: z.looseObject({ name: z.string() }) })).default([]),
});

/** What the gateway asked the scripted model. */
export interface Asked {
  /** The last message of a person, as it came. */
  said: string;
  /** All that was there before the conversation: the gateway's own words and the workspace's files. */
  system: string;
  /** What tools have answered in the whole conversation, by the id of the call. */
  results: { id: string; text: string }[];
  /** Names of the tools that the model may use, sorted. */
  tools: string[];
}

/** What the model does: it calls tools, or it says something and is done. */
export type Reply = { text: string } | { calls: { id: string; tool: string; arguments: Record<string, unknown> }[] };

export interface CanaryModel {
  /** What else was asked of it: somebody fetched an address that was only in a text. */
  fetched: string[];
  close(): Promise<void>;
}

/**
 * Serves the canary's scripted model at `url` (OpenAI's chat completions, streamed), which exists only while this does.
 * Rejects when the address is taken or is not this machine's. `reply` that throws is a 500 to the gateway.
 */
export async function serveCanaryModel(
  url: string,
  key: string,
  reply: (asked: Asked) => Promise<Reply>,
): Promise<CanaryModel> {
  const { hostname, port } = new URL(url);
  const fetched: string[] = [];
  const server = createServer((request, response) => {
    const isChat = request.method === "POST" && request.url === "/v1/chat/completions";
    if (!isChat || request.headers.authorization !== `Bearer ${key}`) {
      if (!isChat) fetched.push(request.url ?? "");
      response.writeHead(isChat ? 401 : 404).end();
      return;
    }
    answer(request, response, reply).catch(() => (response.headersSent ? response.destroy() : fail(response)));
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen({ host: hostname.replace(/^\[|\]$/g, ""), port: Number(port || 80) }, resolve);
  });
  return {
    fetched,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

function fail(response: ServerResponse): void {
  response.writeHead(500, { "content-type": "application/json" }).end('{"error":{"message":"the script failed"}}');
}

async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  reply: (asked: Asked) => Promise<Reply>,
): Promise<void> {
  const { messages, tools } = requestSchema.parse(JSON.parse(await readText(request)));
  const asked = {
    said: textOf(messages.findLast(({ role }) => role === "user")),
    system: messages
      .filter(({ role }) => role === "system" || role === "developer")
      .map(textOf)
      .join("\n"),
    results: messages
      .filter(({ role }) => role === "tool")
      .map((message) => ({ id: message.tool_call_id ?? "", text: textOf(message) })),
    tools: tools.map((tool) => tool.function.name).toSorted(),
  };
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.end(renderStream(await reply(asked)));
}

function textOf(message: z.infer<typeof messageSchema> | undefined): string {
  if (typeof message?.content === "string") return message.content;
  return (message?.content ?? []).map((part) => part.text ?? "").join("\n");
}

function renderStream(reply: Reply): string {
  const chunk = (delta: object, finish: string | null) => ({
    id: "chatcmpl-canary",
    object: "chat.completion.chunk",
    created: 0,
    model: "script",
    choices: [{ index: 0, delta, finish_reason: finish }],
  });
  const isText = "text" in reply;
  const delta = isText
    ? { content: reply.text }
    : {
        tool_calls: reply.calls.map((call, index) => ({
          index,
          id: call.id,
          type: "function",
          function: { name: call.tool, arguments: JSON.stringify(call.arguments) },
        })),
      };
  const usage = { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 };
  const events = [
    chunk({ role: "assistant", ...delta }, null),
    { ...chunk({}, isText ? "stop" : "tool_calls"), usage },
  ];
  return `${events.map((event) => `data: ${JSON.stringify(event)}\n\n`).join("")}data: [DONE]\n\n`;
}
