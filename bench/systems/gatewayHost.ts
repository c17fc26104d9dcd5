import { startGateway } from "../../scripts/services/gateway.ts";

/** The pinned OpenClaw gateway as a program of its own, so that it can be started in the network of another host. */
const gateway = await startGateway({
  dir: String(process.env["GATEWAY_DIR"]),
  port: Number(process.env["PORT"]),
  token: String(process.env["GATEWAY_TOKEN"]),
  env: process.env,
  log: () => undefined,
});
process.on("SIGTERM", () => void gateway.stop().then(() => process.exit(0)));
process.exit(await gateway.exited);
