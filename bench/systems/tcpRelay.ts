import { connect, createServer } from "node:net";

/*
 * Takes connections on LISTEN (address:port) and hands them on to TARGET_PORT of 127.0.0.1: servers of a bench that only
 * listen on loopback become those of a host in its network.
 */
const [host, port] = String(process.env["LISTEN"]).split(":");
const target = Number(process.env["TARGET_PORT"]);

createServer({ noDelay: true }, (client) => {
  const server = connect({ port: target, host: "127.0.0.1", noDelay: true });
  for (const [from, to] of [
    [client, server],
    [server, client],
  ] as const) {
    from.on("error", () => to.destroy());
    from.on("close", () => to.destroy());
    from.pipe(to);
  }
}).listen(Number(port), host);
