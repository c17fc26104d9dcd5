import { renderGatewayConfig } from "../services/gatewayConfig.ts";
import { createWorkspaces } from "../clients/workspaces.ts";
import { loadGatewayConfig } from "../config.ts";
import { createLog } from "../lib/log.ts";

/*
 * Runs before each start of the gateway, never while it runs. Leaves it with nobody configured and every agent's state
 * parked: the start is short, and the gateway can't by itself resume what it was answering when it died (2026.9.3 does,
 * under another run id). The reconciler wakes who is wanted as soon as the gateway is connected.
 */
const config = loadGatewayConfig(process.env);
const workspaces = createWorkspaces(config.OPENCLAW_GATEWAY_DIR, createLog("warn"));
await workspaces.writeConfig(renderGatewayConfig({ config, workspaces }, []));
const parked = await workspaces.parkAll();
console.log(`parked ${parked} agent(s)`);
