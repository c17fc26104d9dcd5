import { insertAudit } from "../db/audit.ts";
import { setGatewayStatus } from "../db/gateways.ts";
import type { Deps } from "../deps.ts";

/**
 * Says whether a gateway gets new assistants: a draining one answers for those it has and gets no more. Done twice it is
 * done once. A sentence where it could not be done.
 */
export async function setPlacement(
  { sql }: Pick<Deps, "sql">,
  { osUser }: { osUser: string },
  input: { id: string; status: "active" | "draining" },
): Promise<string | null> {
  return sql.begin(async (tx) => {
    const outcome = await setGatewayStatus(tx, input);
    if (!outcome) return `There is no gateway "${input.id}".`;
    if (!outcome.changed) return null;
    await insertAudit(tx, {
      actor: "job:admin",
      action: input.status === "active" ? "gateway.activated" : "gateway.drained",
      subjectUserId: null,
      ip: null,
      requestId: null,
      details: { os_user: osUser, gateway: input.id },
    });
    return null;
  });
}
