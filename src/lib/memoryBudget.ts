/** A share of a budget, held by one piece of work. */
export interface Hold {
  /** Takes more; false when there is no room, and then nothing changes. */
  grow(bytes: number): boolean;
  /** Gives everything back, once. */
  release(): void;
}

export interface MemoryBudget {
  /** Begins with nothing. `owner`: nobody holds more than half of the budget. */
  hold(owner: string): Hold;
  /** Bytes held now. */
  held(): number;
}

/** Bytes that may be held at a time, by all pieces of work together. */
export function createMemoryBudget(totalBytes: number): MemoryBudget {
  const byOwner = new Map<string, number>();
  let heldBytes = 0;
  const change = (owner: string, bytes: number) => {
    heldBytes += bytes;
    const left = (byOwner.get(owner) ?? 0) + bytes;
    if (left === 0) byOwner.delete(owner);
    else byOwner.set(owner, left);
  };
  return {
    held: () => heldBytes,
    hold(owner) {
      let mine: number | null = 0;
      return {
        grow(bytes) {
          const ownersBytes = (byOwner.get(owner) ?? 0) + bytes;
          if (mine === null || heldBytes + bytes > totalBytes || ownersBytes > totalBytes / 2) return false;
          mine += bytes;
          change(owner, bytes);
          return true;
        },
        release() {
          if (mine !== null) change(owner, -mine);
          mine = null;
        },
      };
    },
  };
}
