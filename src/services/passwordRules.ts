import { AppError } from "../lib/errors.ts";

/**
 * Refuses a new password that is the account's own address. Common ones are refused where it is hashed
 * (lib/passwords.ts), which nobody who sets one gets past. Throws `weak_password`.
 */
export function requireGoodPassword(password: string, email: string): void {
  const plain = (text: string) => text.normalize("NFKC").trim().toLowerCase();
  if (plain(password) === plain(email)) throw new AppError("weak_password");
}
