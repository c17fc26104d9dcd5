import { FilesAwayError } from "./remoteWorkspaces.ts";
import { GatewayError } from "./gatewayConnection.ts";
import type { GatewayClient } from "./gateway.ts";
import type { Workspaces } from "./workspaces.ts";

/** What a process without a gateway (ROLE=front) has in its place: one that is never there. */
export function createNoGateway(): { gateway: GatewayClient; workspaces: Workspaces } {
  const noCall = () => Promise.reject(new GatewayError("unsent", "NO_GATEWAY", "this process has no gateway"));
  const noFolder = () => Promise.reject(new FilesAwayError(null, "no_gateway", "this process has no gateway"));
  const noPath = (): never => {
    throw new FilesAwayError(null, "no_gateway", "this process has no gateway");
  };
  return {
    gateway: {
      id: "none",
      isReady: () => false,
      hello: () => null,
      listen: () => undefined,
      sendMessage: noCall,
      abortRun: noCall,
      readHistory: noCall,
      listAgents: noCall,
      deleteAgent: noCall,
      forgetConversation: noCall,
      readConfigStatus: noCall,
      close: () => undefined,
    },
    workspaces: {
      workspaceOf: noPath,
      logFile: "",
      readFiles: noPath,
      prepare: noFolder,
      guard: noFolder,
      readConfig: noFolder,
      writeConfig: noFolder,
      listAgents: noFolder,
      purge: noFolder,
      clearLeftovers: noFolder,
      plantCanary: noFolder,
      linkCanary: noFolder,
      removeCanaryLinks: noFolder,
      searchCanary: noFolder,
      clearCanary: noFolder,
    },
  };
}
