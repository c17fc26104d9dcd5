import { randomBytes } from "node:crypto";
import { bad, ok, onHost, skip, warn, type Check, type Result, type Scene } from "./check.ts";
import { VisitError, withVisitor, type Heard, type Visitor } from "./visitor.ts";

const ANSWER_MS = 90_000;
const LIMIT_MS = ANSWER_MS + 60_000;
/** From a message to the first piece of its answer, a sleeper woken included. */
const SLOW_MS = 15_000;
const FIX = "journalctl -u 'reef-api@*' -n 100; docs/runbooks/gateway-down.md";

async function checkReady({ place }: Scene): Promise<Result> {
  if (place.api.length === 0) return bad("no API process is known here", "systemctl start reef-api@1 reef-api@2");
  const asked = place.api.map(async ({ name, url }) => {
    const answer = await fetch(`${url}/readyz`, { signal: AbortSignal.timeout(8_000) }).catch(() => null);
    if (answer?.ok) return null;
    const { waiting_for: waiting = [] } = ((await answer?.json().catch(() => ({}))) ?? {}) as {
      waiting_for?: string[];
    };
    return `${name} ${answer ? `answers ${answer.status}${waiting.length > 0 ? `, waits for ${waiting.join(", ")}` : ""}` : "does not answer"}`;
  });
  const down = (await Promise.all(asked)).filter((one) => one !== null);
  if (down.length > 0) return bad(down.join("; "), "systemctl status 'reef-api@*'; docs/runbooks/api-down.md");
  return ok(`${place.api.length} ready`);
}

/** One visit, judged; what the API refuses is said by its code. */
async function visit(scene: Scene, judge: (urls: string[]) => Promise<Result>): Promise<Result> {
  const urls = scene.place.api.map(({ url }) => url);
  if (urls.length === 0) return skip("no API process is known here");
  try {
    return await judge(urls);
  } catch (error) {
    if (!(error instanceof VisitError)) throw error;
    if (error.code.endsWith("too_many_attempts"))
      return warn("too many sign-ups from this machine", "look again in an hour, or raise SIGNUPS_PER_HOUR");
    return bad(error.message, FIX);
  }
}

async function checkChat(scene: Scene): Promise<Result> {
  return visit(scene, ([url]) =>
    withVisitor(url!, async (visitor) => {
      const heard = await visitor.say("Hello! Please answer with one short sentence.", AbortSignal.timeout(ANSWER_MS));
      if (heard.answer.trim() === "") return bad("the answer is empty", FIX);
      const found = `answered after ${heard.firstMs} ms, whole after ${heard.totalMs} ms`;
      return heard.firstMs > SLOW_MS ? warn(found, "top on the gateway's host; docs/scaling.md") : ok(found);
    }),
  );
}

/** What a device was sent that is not its own: frames that name another assistant, or hold another's words. */
export function findForeign(
  own: { agentId: string; heard: Heard },
  others: { agentId: string; word: string }[],
): string[] {
  return own.heard.frames.flatMap((frame) => {
    const text = JSON.stringify(frame);
    const strange = others.some(({ agentId, word }) => text.includes(agentId) || text.includes(word));
    return strange ? [frame.type] : [];
  });
}

async function checkTwo(scene: Scene): Promise<Result> {
  return visit(scene, (urls) =>
    withVisitor(urls[0]!, (one) =>
      // On another process, where there is one: what they share is the gateway, Redis and the database.
      withVisitor(urls.at(-1)!, async (other) => {
        const people = [one, other].map((visitor) => ({ visitor, word: `Q${randomBytes(6).toString("hex")}` }));
        const signal = AbortSignal.timeout(ANSWER_MS);
        const heard = await Promise.all(
          people.map(({ visitor, word }) => visitor.say(`Please say the word ${word}.`, signal)),
        );
        const foreign = heard.flatMap((own, n) =>
          findForeign({ agentId: people[n]!.visitor.agentId, heard: own }, strangers(people, n)),
        );
        if (foreign.length > 0)
          return bad(
            `one was sent what is another's (${foreign.join(", ")})`,
            "stop everything: systemctl stop reef.target; docs/runbooks/canary-red.md",
          );
        return ok(
          `both answered at once, each saw only its own (${heard.map(({ totalMs }) => `${totalMs} ms`).join(", ")})`,
        );
      }),
    ),
  );
}

function strangers(people: { visitor: Visitor; word: string }[], own: number) {
  return people.filter((_, n) => n !== own).map(({ visitor, word }) => ({ agentId: visitor.agentId, word }));
}

export const CHAT: readonly Check[] = [
  onHost("chat.ready", checkReady),
  onHost("chat.answer", checkChat, { isCostly: true, limitMs: LIMIT_MS }),
  onHost("chat.two_at_once", checkTwo, { isCostly: true, limitMs: LIMIT_MS }),
];
