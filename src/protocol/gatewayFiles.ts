import { createHash } from "node:crypto";
import { z } from "zod";

/*
 * What `src/files.ts` (beside a gateway) and `clients/remoteWorkspaces.ts` say to each other over HTTP, with a bearer token:
 *   POST   /agents/:id/prepare, /agents/:id/guard   the agent's settings → {mended}
 *   GET    /agents/:id/files                        a line of JSON per file, the last one {"end":true}: without it, it broke off
 *   DELETE /agents/:id, /leftovers                  → {}
 *   GET    /agents                                  → {agents}
 *   GET    /config                                  → {text}, null when there is none
 *   PUT    /config                                  the text → {}; 412 when what stands there is not what `If-Match` names
 *   POST   /canary/plant, link, unlink, search, clear   the isolation canary's files (clients/canaryFiles.ts) → its answer
 *   GET    /livez, /readyz                          no token: the process lives; the folder can be read
 * A failure is {error, code}: `code` is the file system's own (ENOSPC), or one word.
 */

/** Everything but the probes may be repeated: done twice it is done once. */
export const agentIdSchema = z.string().regex(/^[a-z0-9][a-z0-9_-]{0,63}$/);
export const settingsSchema = z.strictObject({ display_name: z.string().max(1000).nullable() });
export const mendedSchema = z.object({ mended: z.number().int() });
export const doneSchema = z.object({});
/** What lies in the folder, also what somebody else put there. */
export const agentsSchema = z.object({ agents: z.array(z.string()) });
export const configTextSchema = z.object({ text: z.string().nullable() });
export const failureSchema = z.object({ error: z.string(), code: z.string() });
export const fileLineSchema = z.union([
  z.object({ path: z.array(z.string()), changed_at: z.coerce.date(), content: z.string() }),
  z.object({ path: z.array(z.string()), left_out: z.string() }),
  z.object({ end: z.literal(true) }),
]);

const pair = { attacker: agentIdSchema, neighbour: agentIdSchema };
const secret = z.string().min(1).max(4000);
export const canaryPairSchema = z.object(pair);
export const canaryPlantSchema = z.object({ ...pair, hostSecret: secret, neighbourSecret: secret, own: secret });
export const canarySearchSchema = z.object({ ...pair, stolen: z.array(secret).max(50), mark: secret });
export const canaryPlacesSchema = z.object({
  workspace: z.string(),
  neighbour: z.string(),
  hostFile: z.string(),
  config: z.string(),
  home: z.string(),
  state: z.string(),
});
export const canaryFoundSchema = z.object({ stolen: z.array(z.number()), written: z.array(z.number()) });

/** A configuration of 500 agents has some 100 KB. */
export const CONFIG_LIMIT_BYTES = 4 * 1024 * 1024;
/** The caller's idea of where the folder lies; another one is refused (409), or agents would be sent to nowhere. */
export const FOLDER_HEADER = "reef-gateway-folder";

/** Names a configuration in `If-Match`. */
export function tagOf(text: string | null): string {
  return text === null ? '"none"' : `"${createHash("sha256").update(text).digest("hex")}"`;
}
