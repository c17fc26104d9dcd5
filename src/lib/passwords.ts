/** Argon2id with OWASP's minimum (19 MiB, 2 passes): about 30 ms, off the event loop. Source: OWASP Password Storage Cheat Sheet. */
const PARAMETERS = { algorithm: "argon2id", memoryCost: 19_456, timeCost: 2 } as const;
/** More at once would only take processor time from the chats. */
const MAX_AT_ONCE = 2;

/** What an unknown account is checked against, so that it costs the same time as a known one. */
const NOBODY = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$Sd3rvmm7GRbvA3kEyRmzbcBvPWxGGHc4rDjAlZhEXIs";

export interface Passwords {
  hash(password: string): Promise<string>;
  /** Whether the password fits; `hash` null stands for an account that has none or does not exist. */
  verify(password: string, hash: string | null): Promise<boolean>;
}

/** A hasher that works on a few passwords at a time and lets the others wait in line. */
export function createPasswords(): Passwords {
  let active = 0;
  const waiting: (() => void)[] = [];
  const inTurn = async <T>(work: () => Promise<T>): Promise<T> => {
    if (active >= MAX_AT_ONCE) await new Promise<void>((resolve) => waiting.push(resolve));
    else active += 1;
    try {
      return await work();
    } finally {
      const next = waiting.shift();
      if (next) next();
      else active -= 1;
    }
  };
  return {
    hash: (password) => inTurn(() => Bun.password.hash(password, PARAMETERS)),
    verify: async (password, hash) => {
      const fits = await inTurn(() => Bun.password.verify(password, hash ?? NOBODY));
      return fits && hash !== null;
    },
  };
}
