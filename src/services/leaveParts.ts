import type { Queryable } from "../db/connect.ts";
import { insertDeletionMail } from "../db/deletions.ts";
import { AppError } from "../lib/errors.ts";

/** What leaving needs of others: of Apple and Google, and of the mails. */
export interface LeaveParts {
  /** Whether a fresh identity token is of an account that opens this user's. Throws `provider_not_configured` and the like. */
  verifyFreshIdentity(
    userId: string,
    input: { provider: "apple" | "google"; idToken: string; nonce: string | null },
  ): Promise<boolean>;
  /** Revokes Apple's token, given as it was stored. One that Apple does not know any more is no error. */
  revokeAppleToken(encryptedToken: Buffer): Promise<void>;
  /** Puts a mail into the outbox, in the caller's transaction. */
  enqueueMail(
    sql: Queryable,
    mail: { userId: string | null; template: "deletion-requested" | "deletion-finished"; recipient: string },
  ): Promise<void>;
}

export function createLeaveParts(): LeaveParts {
  return {
    verifyFreshIdentity: async () => {
      throw new AppError("provider_not_configured");
    },
    revokeAppleToken: async () => {
      throw new AppError("provider_not_configured");
    },
    enqueueMail: insertDeletionMail,
  };
}
