import { AppError } from "../lib/errors.ts";

/** Refuses a new password that is easy to guess, here and in the same way for everybody. Throws `weak_password`. */
export function requireGoodPassword(password: string, email: string): void {
  if (password.toLowerCase() === email.toLowerCase()) throw new AppError("weak_password");
}
