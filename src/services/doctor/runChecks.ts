import type { Config } from "../../config.ts";
import { withDeadline } from "../../lib/retry.ts";
import type { Check, Group, Result, Scene } from "./check.ts";

/** What became of a check. `unchecked`: it threw or hung. */
export interface Finding {
  id: string;
  group: Group;
  status: Result["status"] | "unchecked";
  found: string;
  fix: string | null;
  /** What `--fix` did, or with `--dry-run` would do; null: nothing. */
  repaired: string | null;
  ms: number;
}

export interface RunOptions {
  fix: boolean;
  dryRun: boolean;
  onBegin?: (id: string) => void;
  onDone?: (finding: Finding) => void;
}

const AT_ONCE = 8;

/** Runs checks side by side, each within its time. Never rejects; the findings come in the order of the checks. */
export async function runChecks(scene: Scene, checks: readonly Check[], options: RunOptions): Promise<Finding[]> {
  const findings = new Map<string, Finding>();
  const censor = createCensor(scene.deps?.config ?? null);
  const waiting = [...checks];
  const work = async () => {
    for (let check = waiting.shift(); check !== undefined; check = waiting.shift()) {
      options.onBegin?.(check.id);
      const finding = await runOne(scene, check, options, censor);
      findings.set(check.id, finding);
      options.onDone?.(finding);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  return checks.map(({ id }) => findings.get(id)!);
}

async function runOne(scene: Scene, check: Check, options: RunOptions, censor: (text: string) => string) {
  const began = performance.now();
  const [first, repair] = await look(scene, check);
  let last = first;
  let repaired: string | null = null;
  if (repair && options.fix) {
    repaired = repair.does;
    if (!options.dryRun) {
      const trouble = await withDeadline(
        Promise.resolve().then(() => repair.apply()),
        check.limitMs,
        "the repair",
      ).then(
        () => null,
        (error: unknown) => (error instanceof Error ? error.message : String(error)),
      );
      [last] = await look(scene, check);
      if (trouble !== null) repaired = `could not: ${repair.does} (${trouble})`;
    }
  }
  const finding: Finding = { id: check.id, group: check.group, ...last, repaired, ms: 0 };
  for (const name of ["found", "fix", "repaired"] as const)
    if (finding[name] !== null) finding[name] = censor(finding[name]);
  return { ...finding, ms: Math.round(performance.now() - began) };
}

type Seen = Pick<Finding, "status" | "found" | "fix">;

async function look(scene: Scene, check: Check): Promise<[Seen, Result["repair"]]> {
  try {
    const asked = Promise.resolve().then(() => check.run(scene));
    const { repair, fix = null, ...result } = await withDeadline(asked, check.limitMs, "the check");
    return [{ ...result, fix }, repair];
  } catch (error) {
    const found = `could not be checked: ${error instanceof Error ? error.message : String(error)}`;
    return [{ status: "unchecked", found: found.slice(0, 300), fix: null }, undefined];
  }
}

const SECRETS = [
  "JWT_SECRET",
  "OPENCLAW_GATEWAY_TOKEN",
  "GATEWAY_FILES_TOKEN",
  "OPENAI_API_KEY",
  "STRIPE_SECRET_KEY",
  "RESTIC_PASSWORD",
  "APPLE_PRIVATE_KEY",
] as const;
const WITH_PASSWORDS = ["DATABASE_URL", "REDIS_URL", "SMTP_URL", "ALARM_WEBHOOK_URL"] as const;

/** A net: what others say in an error may quote a secret. */
function createCensor(config: Config | null): (text: string) => string {
  if (!config) return (text) => text;
  const urls = WITH_PASSWORDS.flatMap((name) => [config[name], URL.parse(config[name] ?? "")?.password]);
  const passwords = urls.flatMap((value) => (value ? [value, decodeURIComponent(value)] : []));
  const secrets = [...SECRETS.map((name) => config[name]), ...config.STRIPE_WEBHOOK_SECRETS, ...passwords];
  const known = secrets.filter((secret): secret is string => secret !== undefined && secret.length >= 4);
  return (text) => known.reduce((censored, secret) => censored.replaceAll(secret, "[secret]"), text);
}
