import { availableParallelism } from "node:os";
import { AppError } from "./errors.ts";

/** Argon2id with OWASP's minimum (19 MiB, 2 passes): about 30 ms, off the event loop. Source: OWASP Password Storage Cheat Sheet. */
const PARAMETERS = { algorithm: "argon2id", memoryCost: 19_456, timeCost: 2 } as const;
/** More would only take processor time from the chats: one processor is always left to them (bench/README.md). */
const MAX_AT_ONCE = 2;
/** About ten seconds of work: who came later would have given up before it was done. */
const MAX_WAITING = 250;
const RETRY_SECONDS = 5;

/** What an unknown account is checked against, so that it costs the same time as a known one. */
const NOBODY = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$Sd3rvmm7GRbvA3kEyRmzbcBvPWxGGHc4rDjAlZhEXIs";

/** Whether the password fits; `hash` null stands for an account that has none or does not exist. */
type Verify = (password: string, hash: string | null) => Promise<boolean>;

/** All of these throw `service_unavailable` when the line is too long. */
export interface Passwords {
  /** For a password that somebody sets: a common one can't be had past it. Throws `weak_password`. */
  hash(password: string): Promise<string>;
  verify: Verify;
  /** Waits for its turn, then runs `work`, which may look at a password with what it is given. */
  inTurn<T>(work: (verify: Verify) => Promise<T>): Promise<T>;
}

/** A hasher that works on a few passwords at a time and lets the others wait in a line of limited length. */
export function createPasswords(
  isCommon: (password: string) => Promise<boolean>,
  atOnce = Math.max(1, Math.min(MAX_AT_ONCE, availableParallelism() - 1)),
): Passwords {
  let active = 0;
  const waiting: (() => void)[] = [];
  const inTurn = async <T>(work: (verify: Verify) => Promise<T>): Promise<T> => {
    if (active < atOnce) active += 1;
    else if (waiting.length < MAX_WAITING) await new Promise<void>((resolve) => waiting.push(resolve));
    else throw new AppError("service_unavailable", { retry_after: RETRY_SECONDS });
    try {
      return await work(verifyNow);
    } finally {
      const next = waiting.shift();
      if (next) next();
      else active -= 1;
    }
  };
  return {
    async hash(password) {
      if (await isCommon(password)) throw new AppError("weak_password");
      return inTurn(() => Bun.password.hash(toHashable(password), PARAMETERS));
    },
    verify: (password, hash) => inTurn((verify) => verify(password, hash)),
    inTurn,
  };
}

const verifyNow: Verify = async (password, hash) => {
  const fits = await Bun.password.verify(toHashable(password), hash ?? NOBODY);
  return fits && hash !== null;
};

// Keyboards differ in how they compose "é" (NIST SP 800-63B 5.1.1.2: NFKC before hashing). ASCII stays as it is.
function toHashable(password: string): string {
  return password.normalize("NFKC");
}
