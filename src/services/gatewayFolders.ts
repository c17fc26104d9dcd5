import { createRemoteWorkspaces } from "../clients/remoteWorkspaces.ts";
import type { Workspaces } from "../clients/workspaces.ts";
import { findServedFolder } from "../db/gateways.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";

/**
 * The folder of whichever gateway an assistant lives on, to read from: our own gateway's, or that of another host. Throws
 * `service_unavailable` where that one's is not served to others (its processes have no GATEWAY_FILES_URL).
 */
export async function findFolder(
  { sql, workspaces, config }: Pick<Deps, "sql" | "workspaces" | "config">,
  gatewayId: string,
): Promise<Pick<Workspaces, "readFiles">> {
  if (gatewayId === config.GATEWAY_ID) return workspaces;
  const served = await findServedFolder(sql, gatewayId);
  const token = config.GATEWAY_FILES_TOKEN;
  if (served === null || token === undefined) throw new AppError("service_unavailable", { retry_after: 60 });
  return createRemoteWorkspaces({ ...served, token });
}
