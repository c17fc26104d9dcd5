/** A piece of a page that is safe to send. */
export class Html {
  constructor(readonly text: string) {}
}

type Part = Html | Part[] | string | number | null | false;

/** A template whose values are escaped unless they are pieces of a page themselves; null and false are nothing. */
export function html(strings: TemplateStringsArray, ...parts: Part[]): Html {
  return new Html(strings.map((text, index) => text + (index < parts.length ? render(parts[index]!) : "")).join(""));
}

function render(part: Part): string {
  if (part instanceof Html) return part.text;
  if (Array.isArray(part)) return part.map(render).join("");
  if (part === null || part === false) return "";
  return escapeText(String(part));
}

const ENTITIES: Record<string, string> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };

function escapeText(text: string): string {
  return text.replace(/[&<>"']/g, (character) => ENTITIES[character]!);
}

/** An address that a link or a redirect may lead to: web pages and apps, never a script. */
export function isSafeTarget(url: string): boolean {
  return /^[a-z][a-z0-9+.-]*:\/\//i.test(url) && !/^(javascript|data|vbscript|blob|file):/i.test(url);
}

export function money(amount: number, currency: string): string {
  return new Intl.NumberFormat("en-US", { style: "currency", currency }).format(amount / 100);
}

export function dateText(seconds: number): string {
  return new Date(seconds * 1000).toLocaleDateString("en-GB", { day: "numeric", month: "long", year: "numeric" });
}

const STYLE = `
*{box-sizing:border-box}
:root{--ink:#1d2433;--soft:#5b6475;--line:#e3e6ec;--page:#f5f6f9;--card:#fff;--main:#3b5bdb;--bad:#b3261e;--badbg:#fdecea;--good:#1b6e3c;--goodbg:#e6f4ea}
@media (prefers-color-scheme:dark){:root{--ink:#e8eaf0;--soft:#a2aabb;--line:#333a48;--page:#14171f;--card:#1d212c;--main:#4263eb;--bad:#ff8a80;--badbg:#3a1f1f;--good:#81c995;--goodbg:#1c3226}}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
.banner{background:#ffe8a3;color:#4a3a00;text-align:center;padding:.5rem 1rem;font-weight:600;font-size:.9rem}
main{max-width:860px;margin:0 auto;padding:1.5rem 1rem 3rem}
main.narrow{max-width:480px}
h1{font-size:1.4rem;margin:.5rem 0 1rem}h2{font-size:1.05rem;margin:0 0 .75rem}p{margin:.25rem 0 .75rem}
.columns{display:grid;gap:1rem}@media (min-width:720px){.columns{grid-template-columns:1fr 1fr}}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1.25rem;margin-bottom:1rem}
.columns .card{margin:0}
.price{font-size:2rem;font-weight:650;margin:.25rem 0}.soft{color:var(--soft);font-size:.92rem}
.row{display:flex;justify-content:space-between;gap:1rem;padding:.4rem 0;border-top:1px solid var(--line)}.row:first-of-type{border-top:0}.row span{overflow-wrap:anywhere}
form{margin:0}button,.button{display:block;width:100%;border:1px solid var(--line);border-radius:8px;padding:.7rem 1rem;margin:.5rem 0;font:inherit;font-weight:600;background:var(--card);color:var(--ink);cursor:pointer;text-align:center;text-decoration:none}
button.main{background:var(--main);border-color:var(--main);color:#fff}button.bad{color:var(--bad)}
button:hover,.button:hover{filter:brightness(.96)}button:focus-visible,a:focus-visible{outline:3px solid var(--main);outline-offset:2px}
.note{border-radius:8px;padding:.7rem 1rem;margin-bottom:1rem;background:var(--goodbg);color:var(--good)}.note.bad{background:var(--badbg);color:var(--bad)}
.tag{display:inline-block;border-radius:99px;padding:.1rem .6rem;font-size:.85rem;font-weight:600;background:var(--goodbg);color:var(--good)}.tag.bad{background:var(--badbg);color:var(--bad)}
a{color:var(--main)}`;

/** A whole page with the banner that nobody can miss. */
export function page(title: string, body: Html, narrow = false): string {
  return html`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta name="robots" content="noindex"><title>${title} · Play shop</title><style>${new Html(STYLE)}</style></head>
<body><div class="banner">Play shop – no real money</div><main${narrow && new Html(' class="narrow"')}>${body}</main></body></html>`
    .text;
}

export interface Notice {
  text: string;
  bad?: boolean;
}

export function notice(note: Notice | null): Html | null {
  return note && html`<div class="note${note.bad === true && " bad"}" role="status">${note.text}</div>`;
}

/** One button that sends one action, with what belongs to it. */
export function action(label: string, name: string, options: { style?: string; fields?: Record<string, string> } = {}) {
  const fields = Object.entries(options.fields ?? {}).map(
    ([field, value]) => html`<input type="hidden" name="${field}" value="${value}" />`,
  );
  return html`<form method="post">
    ${fields}<button class="${options.style ?? ""}" name="action" value="${name}">${label}</button>
  </form>`;
}
