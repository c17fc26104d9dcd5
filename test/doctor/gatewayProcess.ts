import { startFakeGateway } from "../fakes/gateway.ts";

// The fake gateway as a process of its own, which can be stopped and killed: DIR PORT TOKEN. A line of digits on standard
// input holds its event loop for so many milliseconds, as heavy load does.
const [dir = "", port = "0", token = ""] = process.argv.slice(2);
const gateway = await startFakeGateway({ dir, port: Number(port), token });
console.log(gateway.port);
for await (const line of console) {
  const until = performance.now() + Number(line);
  console.log("held");
  while (performance.now() < until);
}
