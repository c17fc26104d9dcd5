import { connect, createServer, type Server, type Socket } from "node:net";

/*
 * Carries connections between a network of its own, which has nothing but a loopback, and this machine's: by sockets in
 * a folder that both see. `bun test/server/relay.ts FROM=TO ...`, each a TCP port of 127.0.0.1 or the path of a socket.
 */

const placeOf = (name: string) => (/^\d+$/.test(name) ? { host: "127.0.0.1", port: Number(name) } : { path: name });

/** Listens on each FROM and carries what comes to its TO. Resolves when all listen. */
export async function relay(pairs: string[]): Promise<Server[]> {
  return Promise.all(
    pairs.map(async (pair) => {
      const [from = "", to = ""] = pair.split("=");
      const server = createServer({ allowHalfOpen: true }, (socket) =>
        join(socket, connect({ ...placeOf(to), allowHalfOpen: true })),
      );
      await new Promise<void>((resolve, reject) => server.once("error", reject).listen(placeOf(from), resolve));
      return server;
    }),
  );
}

/** A proxy for apt, npm and curl: CONNECT, and plain requests with a whole address, which servers take as they are. */
export async function startProxy(socketPath: string): Promise<Server> {
  const server = createServer((client) => {
    let head = Buffer.alloc(0);
    const read = (piece: Buffer) => {
      head = Buffer.concat([head, piece]);
      if (!head.includes("\r\n\r\n")) return;
      client.off("data", read).pause();
      const [, method, target = ""] = /^(\S+) (\S+) /.exec(head.toString("latin1")) ?? [];
      const address = URL.parse(method === "CONNECT" ? `https://${target}` : target);
      if (!address) return void client.destroy();
      const port = Number(address.port) || (address.protocol === "https:" ? 443 : 80);
      const there = connect({ host: address.hostname, port }, () => {
        if (method === "CONNECT") client.write("HTTP/1.1 200 OK\r\n\r\n");
        else there.write(head);
      });
      join(client, there);
    };
    client.on("data", read).on("error", () => client.destroy());
  });
  await new Promise<void>((resolve, reject) => server.once("error", reject).listen(socketPath, resolve));
  return server;
}

function join(one: Socket, other: Socket): void {
  for (const [from, to] of [
    [one, other],
    [other, one],
  ] as const) {
    from.on("error", () => to.destroy()).on("close", () => to.destroy());
    from.pipe(to);
  }
}

if (import.meta.main) {
  await relay(process.argv.slice(2));
  console.log("listening");
}
