import {
  createAssistant,
  findAssistant,
  listAssistants,
  setAssistantStatus,
  touchAssistant,
  updateAssistant,
  type Assistant,
} from "../db/assistants.ts";
import { findPlacement } from "../db/gateways.ts";
import { resumeAssistant } from "../db/planFit.ts";
import { findUpgrade, getPlanOf } from "../db/plans.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { deriveId, newAgentId, newId } from "../lib/ids.ts";
import type { Identity } from "./accessTokens.ts";

type AssistantDeps = Pick<Deps, "sql" | "config">;

/**
 * Creates an assistant within the plan's number. `claim` names the creation: repeated, it finds the first one's.
 * Throws `assistant_limit_reached`, `voice_not_in_plan`, `account_suspended`.
 */
export async function createAssistantFor(
  deps: AssistantDeps,
  actor: Identity,
  input: { displayName: string | null; voice: string | null; claim: string | null },
): Promise<Assistant> {
  const plan = await getPlanOf(deps.sql, actor.userId);
  const voice = input.voice ?? plan.voices[0]!;
  await requireVoice(deps, plan, voice);
  const id = input.claim === null ? newId() : deriveId("assistant", actor.userId, input.claim);
  const gatewayId = await findPlacement(deps.sql);
  if (!gatewayId) throw new AppError("service_unavailable", { retry_after: 30 });
  const created = await deps.sql.begin((sql) =>
    createAssistant(sql, {
      id,
      userId: actor.userId,
      gatewayId,
      agentId: newAgentId(),
      displayName: input.displayName,
      voice,
    }),
  );
  if (created === "inactive") throw new AppError("account_suspended");
  if (!created) throw await limitReached(deps, actor);
  return created;
}

async function limitReached(deps: Pick<Deps, "sql">, actor: Identity): Promise<AppError> {
  const { plan, assistants } = await getPlanOf(deps.sql, actor.userId);
  const upgradeTo = await findUpgrade(deps.sql, plan);
  return new AppError("assistant_limit_reached", { limit: assistants, used: assistants, upgrade_to: upgradeTo });
}

export async function listAssistantsOf(deps: AssistantDeps, actor: Identity): Promise<Assistant[]> {
  return listAssistants(deps.sql, actor.userId);
}

/** Throws `assistant_not_found`, also for somebody else's. */
export async function getAssistant(deps: Pick<Deps, "sql">, actor: Identity, id: string): Promise<Assistant> {
  return orNotFound(await findAssistant(deps.sql, { userId: actor.userId, id }));
}

/** Changes name or voice. Throws `assistant_not_found`, `voice_not_in_plan`. */
export async function changeAssistant(
  deps: AssistantDeps,
  actor: Identity,
  id: string,
  input: { displayName: string | null; voice: string | null },
): Promise<Assistant> {
  if (input.voice !== null) await requireVoice(deps, await getPlanOf(deps.sql, actor.userId), input.voice);
  return orNotFound(await updateAssistant(deps.sql, { userId: actor.userId, id, ...input }));
}

/** Resumes a paused one. Throws `assistant_not_found`, `assistant_limit_reached` when the plan has no place for it. */
export async function resumeAssistantFor(deps: Pick<Deps, "sql">, actor: Identity, id: string): Promise<Assistant> {
  const resumed = await deps.sql.begin((sql) => resumeAssistant(sql, { userId: actor.userId, id }));
  if (resumed === "full") throw await limitReached(deps, actor);
  return orNotFound(resumed);
}

/** Pauses or deletes; deleting begins the purge, which goes on in the reconciler. Throws `assistant_not_found`. */
export async function changeAssistantStatus(
  deps: AssistantDeps,
  actor: Identity,
  id: string,
  status: "paused" | "deleted",
): Promise<Assistant> {
  return orNotFound(await deps.sql.begin((sql) => setAssistantStatus(sql, { userId: actor.userId, id, status })));
}

/** Somebody opened this assistant: it is to be awake. */
export async function wakeAssistant(deps: Pick<Deps, "sql">, actor: Identity, id: string): Promise<void> {
  await touchAssistant(deps.sql, { userId: actor.userId, id });
}

function orNotFound(assistant: Assistant | null): Assistant {
  if (!assistant) throw new AppError("assistant_not_found");
  return assistant;
}

async function requireVoice(
  deps: AssistantDeps,
  plan: { plan: string; voices: string[] },
  voice: string,
): Promise<void> {
  if (plan.voices.includes(voice)) return;
  throw new AppError("voice_not_in_plan", { upgrade_to: await findUpgrade(deps.sql, plan.plan) });
}
