/** What a form says before its types are known. */
export type FormValue = string | FormValue[] | { [name: string]: FormValue };

/** Reads `a[b][0][c]=d` as Stripe does. `[]` appends; numbers are places in an array. */
export function parseForm(encoded: string): Record<string, FormValue> {
  const root: Node = { children: new Map() };
  for (const [key, value] of new URLSearchParams(encoded)) insert(root, pathOf(key), value);
  return Object.fromEntries([...root.children].map(([name, child]) => [name, toObject(child)]));
}

interface Node {
  value?: string;
  children: Map<string, Node>;
}

function pathOf(key: string): string[] {
  const head = key.split("[", 1)[0]!;
  return [head, ...[...key.slice(head.length).matchAll(/\[([^\]]*)\]/g)].map((match) => match[1]!)];
}

function insert(node: Node, path: string[], value: string): void {
  for (const part of path) {
    const name = part === "" ? String(node.children.size) : part;
    const child = node.children.get(name) ?? { children: new Map<string, Node>() };
    node.children.set(name, child);
    node = child;
  }
  node.value = value;
}

function toObject(node: Node): FormValue {
  if (node.children.size === 0) return node.value ?? "";
  const entries = [...node.children].map(([name, child]) => [name, toObject(child)] as const);
  // A metadata key may be a number too: the description decides, see readObject.
  return Object.fromEntries(entries);
}
