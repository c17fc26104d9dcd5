import { createHash } from "node:crypto";
import type { Hono } from "hono";
import type { Env } from "../http/env.ts";

const STYLE = `
:root { color-scheme: light dark; }
body { margin: 0; min-height: 100vh; display: flex; align-items: center; justify-content: center;
  font: 17px/1.5 system-ui, sans-serif; background: #f4f6f8; color: #1b2733; }
main { max-width: 26rem; margin: 1.5rem; padding: 2rem; border-radius: 14px; background: #fff; text-align: center;
  box-shadow: 0 1px 8px rgb(0 0 0 / 12%); }
h1 { margin: 0 0 .75rem; font-size: 1.5rem; }
p { margin: .5rem 0; }
.back { margin-top: 1.5rem; opacity: .7; }
@media (prefers-color-scheme: dark) { body { background: #10161c; color: #e6edf3; } main { background: #1a232c; } }
`;
const STYLE_HASH = createHash("sha256").update(STYLE).digest("base64");
const POLICY = `default-src 'none'; style-src 'sha256-${STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`;

interface Words {
  title: string;
  text: string;
}
const DONE = { title: "Thank you", text: "Your payment went through. The app shows your new plan in a moment." };
const CANCELLED = {
  title: "Nothing was bought",
  text: "You were not charged. You can choose a plan again in the app.",
};
const BACK = { title: "Your subscription", text: "The app shows it as it stands now." };

/**
 * Where Stripe's pages lead back to while APP_URL is this server: `/subscription?checkout=done|cancelled` or
 * `?portal=done`. It says what happened, knows nobody, and needs nothing from elsewhere.
 */
export function returnPage(app: Hono<Env>): void {
  app.get("/subscription", (c) => {
    c.header("Content-Security-Policy", POLICY);
    c.header("Cache-Control", "no-store");
    return c.html(renderPage(wordsFor(c.req.query("checkout"))));
  });
}

function wordsFor(checkout: string | undefined): Words {
  if (checkout === "done") return DONE;
  return checkout === "cancelled" ? CANCELLED : BACK;
}

function renderPage({ title, text }: Words): string {
  return `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title} · Reef</title><style>${STYLE}</style></head>
<body><main><h1>${title}</h1><p>${text}</p><p class="back">You can close this page and go back to the app.</p></main></body>
</html>
`;
}
