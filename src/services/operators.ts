import { createHash, randomBytes } from "node:crypto";
import { insertAudit } from "../db/audit.ts";
import {
  createOperatorToken,
  listOperatorTokens,
  revokeOperatorToken,
  useOperatorToken,
  type OperatorToken,
} from "../db/operators.ts";
import type { Deps } from "../deps.ts";
import { AppError } from "../lib/errors.ts";
import { newId } from "../lib/ids.ts";
import type { Origin } from "./sessions.ts";
import { countRequest, requireRequestLeft } from "./throttle.ts";

/** Who a valid operator token stands for. */
export interface Operator {
  kind: "operator";
  name: string;
}

type SqlDeps = Pick<Deps, "sql">;
type Job = { osUser: string };

const FORM = /^op_[A-Za-z0-9_-]{43}$/;
export const OPERATOR_NAME = /^[a-z0-9][a-z0-9._-]{0,39}$/;
const FAILURES = { kind: "operator", limit: 30, windowSeconds: 900 };

const unauthorized = () => new AppError("unauthorized", {}, "A valid operator token is needed.");

/**
 * Whose operator token it is. Thirty unknown ones from an address in 15 minutes, and it is not asked any more. Throws
 * `unauthorized` (the same for none, a user's, an unknown and a revoked one), `too_many_attempts`.
 */
export async function authenticateOperator(
  deps: Pick<Deps, "sql" | "redis" | "localCounts">,
  origin: Origin,
  token: string | null,
): Promise<Operator> {
  // What has not the form can be nobody's, and costs nothing to refuse.
  if (token === null || !FORM.test(token)) throw unauthorized();
  const failures = { ...FAILURES, who: origin.ip };
  await requireRequestLeft(deps, failures);
  const found = await useOperatorToken(deps.sql, hashOf(token));
  if (found) return { kind: "operator", name: found.name };
  await countRequest(deps, failures);
  await insertAudit(deps.sql, { actor: "unknown", action: "operator.token_refused", subjectUserId: null, ...origin });
  throw unauthorized();
}

/** Makes a token, which is shown this once; null when the name was ever used. */
export async function createOperator(deps: SqlDeps, actor: Job, name: string): Promise<string | null> {
  const token = `op_${randomBytes(32).toString("base64url")}`;
  const created = await deps.sql.begin(async (sql) => {
    if (!(await createOperatorToken(sql, { id: newId(), name, tokenHash: hashOf(token) }))) return false;
    await insertAudit(sql, { ...byJob(actor, name), action: "operator.token_created" });
    return true;
  });
  return created ? token : null;
}

/** False when there is no living token of this name. It is refused from now on. */
export async function revokeOperator(deps: SqlDeps, actor: Job, name: string): Promise<boolean> {
  return deps.sql.begin(async (sql) => {
    if (!(await revokeOperatorToken(sql, name))) return false;
    await insertAudit(sql, { ...byJob(actor, name), action: "operator.token_revoked" });
    return true;
  });
}

export async function listOperators(deps: SqlDeps): Promise<OperatorToken[]> {
  return listOperatorTokens(deps.sql);
}

function byJob({ osUser }: Job, name: string) {
  return { actor: "job:admin", subjectUserId: null, ip: null, requestId: null, details: { name, os_user: osUser } };
}

function hashOf(token: string): Buffer {
  return createHash("sha256").update(token).digest();
}
