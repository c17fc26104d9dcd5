import { connect, createServer, type Server, type Socket } from "node:net";

/**
 * What the network does to the connections that go through it. `refuse`: new ones are reset. `swallow`: bytes of either
 * side vanish and nobody hears of an end (half-open); a connection caught by it stays so for good, as one whose peer or
 * whose entry in a router's table is gone. `freeze`: nothing moves, nothing is lost.
 */
type Mode = "pass" | "refuse" | "slow" | "swallow" | "freeze";

export interface Slowness {
  latencyMs: number;
  bytesPerSecond: number;
}

/** Sees what the server sends, before it goes on; what follows on that connection waits for the promise. */
type Tap = (bytes: Buffer) => Promise<void> | undefined;

interface Link {
  client: Socket;
  server: Socket;
  swallowed: boolean;
}

/** A TCP proxy on a port of its own, before a server on 127.0.0.1 whose port may change (`target` is asked each time). */
export class Proxy {
  tap: Tap | null = null;
  private mode: Mode = "pass";
  private slowness: Slowness = { latencyMs: 0, bytesPerSecond: Infinity };
  private readonly links = new Set<Link>();
  private readonly listener: Server;

  private constructor(private readonly target: () => number) {
    // Half-open as TCP knows it: the end of one direction is passed on as just that.
    this.listener = createServer({ allowHalfOpen: true }, (client) => this.accept(client));
  }

  static async open(target: () => number): Promise<Proxy> {
    const proxy = new Proxy(target);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    proxy.listener.once("error", reject);
    proxy.listener.listen(0, "127.0.0.1", resolve);
    await promise;
    return proxy;
  }

  get port(): number {
    const address = this.listener.address();
    if (address === null || typeof address === "string") throw new Error("the proxy is closed");
    return address.port;
  }

  /** All is well again, except for connections that were swallowed. */
  pass(): void {
    const thaw = this.mode === "freeze";
    this.mode = "pass";
    if (thaw) for (const link of this.links) this.forBoth(link, (socket) => socket.resume());
  }

  /** Resets every connection; new ones pass as before. */
  cut(): void {
    for (const link of this.links) this.reset(link);
  }

  refuse(): void {
    this.mode = "refuse";
  }

  slow(slowness: Slowness): void {
    this.mode = "slow";
    this.slowness = slowness;
  }

  swallow(): void {
    this.mode = "swallow";
    for (const link of this.links) link.swallowed = true;
  }

  freeze(): void {
    this.mode = "freeze";
    for (const link of this.links) this.forBoth(link, (socket) => socket.pause());
  }

  close(): void {
    this.listener.close();
    this.cut();
  }

  private accept(client: Socket): void {
    if (this.mode === "refuse") {
      client.on("error", () => undefined);
      client.resetAndDestroy();
      return;
    }
    const server = connect({ port: this.target(), host: "127.0.0.1", allowHalfOpen: true });
    const link: Link = { client, server, swallowed: this.mode === "swallow" };
    this.links.add(link);
    for (const socket of [client, server]) socket.setNoDelay(true);
    this.carry(link, client, server, null);
    this.carry(link, server, client, (bytes) => this.tap?.(bytes));
    if (this.mode === "freeze") this.forBoth(link, (socket) => socket.pause());
  }

  private carry(link: Link, from: Socket, to: Socket, tap: Tap | null): void {
    // What must wait, in order; null while nothing does, so that bytes pass at once.
    let line: Promise<void> | null = null;
    let busyUntil = 0;
    const inLine = (wait: Promise<void> | undefined, deliver: () => void) => {
      const mine: Promise<void> = Promise.all([line, wait]).then(() => {
        if (!link.swallowed) deliver();
        if (line === mine) line = null;
      });
      line = mine;
    };
    from.on("data", (bytes: Buffer) => {
      if (link.swallowed) return;
      const held = tap?.(bytes);
      let wait = held;
      if (this.mode === "slow") {
        const { latencyMs, bytesPerSecond } = this.slowness;
        busyUntil = Math.max(busyUntil, Date.now()) + (bytes.length / bytesPerSecond) * 1000;
        const arrives = Bun.sleep(busyUntil + latencyMs - Date.now());
        wait = held ? held.then(() => arrives) : arrives;
      }
      if (line || wait) inLine(wait, () => void to.write(bytes));
      else to.write(bytes);
    });
    from.on("end", () => {
      if (link.swallowed) return;
      if (line) inLine(undefined, () => void to.end());
      else to.end();
    });
    from.on("error", () => !link.swallowed && this.reset(link));
    from.on("close", () => to.destroyed && this.links.delete(link));
  }

  private reset(link: Link): void {
    this.links.delete(link);
    this.forBoth(link, (socket) => {
      socket.removeAllListeners();
      socket.on("error", () => undefined);
      socket.resetAndDestroy();
    });
  }

  private forBoth(link: Link, act: (socket: Socket) => void): void {
    act(link.client);
    act(link.server);
  }
}
