import type { Assistant } from "../db/assistants.ts";
import type { Deps } from "../deps.ts";
import type { Router } from "../http/env.ts";
import { AppError } from "../lib/errors.ts";
import { z } from "zod";
import {
  acceptedSchema,
  assistantSchema,
  createAssistantBody,
  idParam,
  messagesQuery,
  messagesSchema,
  sendMessageBody,
  sentMessageSchema,
  updateAssistantBody,
  type AssistantBody,
} from "../protocol/api.ts";
import {
  changeAssistant,
  changeAssistantStatus,
  createAssistantFor,
  getAssistant,
  listAssistantsOf,
  resumeAssistantFor,
} from "../services/assistants.ts";
import type { ChatHub } from "../services/chatHub.ts";
import { acceptMessage, readConversation } from "../services/conversations.ts";
import type { Starter } from "../services/turnEngine.ts";
import { renderMessage } from "../services/messageView.ts";
import { isRefused, renderRefusal } from "../services/usage.ts";

const tag = "Assistants";
const path = "/api/assistants";

/** `/api/assistants`: the user's assistants and their conversations. */
export function assistantRoutes(router: Router, deps: Deps, hub: ChatHub, engine: Starter): void {
  const shared = { access: "user", tag, responses: { 200: assistantSchema }, errors: ["assistant_not_found"] } as const;
  router.route(
    {
      ...shared,
      method: "get",
      path,
      summary: "List the assistants, oldest first",
      responses: { 200: z.array(assistantSchema) },
      errors: [],
    },
    async (c) => c.json((await listAssistantsOf(deps, c.get("actor"))).map(renderAssistant)),
  );
  router.route(
    {
      ...shared,
      method: "post",
      path,
      summary: "Create an assistant",
      body: createAssistantBody,
      responses: { 201: assistantSchema },
      errors: ["assistant_limit_reached", "voice_not_in_plan"],
    },
    async (c, { body }) => {
      const input = {
        displayName: body.display_name ?? null,
        voice: body.voice ?? null,
        claim: c.get("claim") ?? null,
      };
      return c.json(renderAssistant(await createAssistantFor(deps, c.get("actor"), input)), 201);
    },
  );
  router.route(
    { ...shared, method: "get", path: `${path}/:id`, summary: "Read an assistant", params: idParam },
    async (c, { params }) => c.json(renderAssistant(await getAssistant(deps, c.get("actor"), params.id))),
  );
  router.route(
    {
      ...shared,
      method: "put",
      path: `${path}/:id`,
      summary: "Change its name or voice",
      params: idParam,
      body: updateAssistantBody,
      errors: ["assistant_not_found", "voice_not_in_plan"],
    },
    async (c, { params, body }) => {
      const input = { displayName: body.display_name ?? null, voice: body.voice ?? null };
      return c.json(renderAssistant(await changeAssistant(deps, c.get("actor"), params.id, input)));
    },
  );
  router.route(
    {
      ...shared,
      method: "delete",
      path: `${path}/:id`,
      summary: "Delete it with all it knows",
      params: idParam,
      responses: { 200: acceptedSchema },
    },
    async (c, { params }) => {
      await changeAssistantStatus(deps, c.get("actor"), params.id, "deleted");
      return c.json({ message: "The assistant and everything it knew is being erased." });
    },
  );
  router.route(
    {
      ...shared,
      method: "post",
      path: `${path}/:id/pause`,
      summary: "Pause: keeps everything, refuses chat",
      params: idParam,
    },
    async (c, { params }) =>
      c.json(renderAssistant(await changeAssistantStatus(deps, c.get("actor"), params.id, "paused"))),
  );
  router.route(
    {
      ...shared,
      method: "post",
      path: `${path}/:id/resume`,
      summary: "Resume a paused assistant, where the plan has a place for it",
      params: idParam,
      errors: ["assistant_not_found", "assistant_limit_reached"],
    },
    async (c, { params }) => c.json(renderAssistant(await resumeAssistantFor(deps, c.get("actor"), params.id))),
  );
  messageRoutes(router, deps, hub, engine);
}

function messageRoutes(router: Router, deps: Deps, hub: ChatHub, engine: Starter): void {
  const shared = { access: "user", tag: "Messages", path: `${path}/:id/messages`, params: idParam } as const;
  router.route(
    {
      ...shared,
      method: "get",
      summary: "Read the conversation",
      query: messagesQuery,
      responses: { 200: messagesSchema },
      errors: ["assistant_not_found"],
    },
    async (c, { params, query }) => {
      const page = await readConversation(deps, {
        userId: c.get("actor").userId,
        assistantId: params.id,
        afterSeq: query.after_seq ?? null,
        beforeSeq: query.before_seq ?? null,
        limit: query.limit,
      });
      return c.json({
        items: page.items.map((message) => renderMessage(message, page.agentId)),
        last_seq: page.lastSeq,
        has_more: page.hasMore,
      });
    },
  );
  router.route(
    {
      ...shared,
      method: "post",
      metered: true,
      summary: "Send a message without a socket",
      body: sendMessageBody,
      responses: { 202: sentMessageSchema },
      errors: ["assistant_not_found", "assistant_paused", "client_id_conflict", "RATE_LIMITED"],
    },
    async (c, { params, body }) => {
      const actor = c.get("actor");
      const accepted = await acceptMessage(deps, engine.claim, {
        userId: actor.userId,
        assistantId: params.id,
        clientId: body.client_id,
        content: body.content,
      });
      if (accepted instanceof AppError) throw accepted;
      if (accepted.usage) c.set("usage", accepted.usage);
      if (isRefused(accepted)) throw renderRefusal(deps, accepted);
      hub.messageStored(params.id, accepted.message.seq, accepted.message);
      engine.start(accepted.claimed);
      const { agentId } = await getAssistant(deps, actor, params.id);
      return c.json(
        {
          message: renderMessage(accepted.message, agentId),
          turn: { id: accepted.turn.id, status: accepted.turn.status },
        },
        202,
      );
    },
  );
}

function renderAssistant(assistant: Assistant): AssistantBody {
  return {
    id: assistant.id,
    agent_id: assistant.agentId,
    display_name: assistant.displayName ?? "Assistant",
    voice: assistant.voice,
    model: assistant.model,
    status: assistant.status,
    ...(assistant.pausedByPlan ? { paused_by_plan: true } : {}),
    ready: assistant.status === "active" && assistant.state === "awake",
    state: assistant.state,
    ...(assistant.stateReason ? { state_reason: assistant.stateReason } : {}),
    last_active_at: assistant.lastActiveAt?.toISOString() ?? null,
    message_count: assistant.messageCount,
    created_at: assistant.createdAt.toISOString(),
    updated_at: assistant.updatedAt.toISOString(),
  };
}
