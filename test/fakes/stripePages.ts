import type { IncomingMessage, ServerResponse } from "node:http";
import type { FakeStripe } from "./stripe.ts";
import { find, type Account } from "./stripeAccount.ts";
import { actOnCheckout, renderCheckout, renderInvoice, type PageResult } from "./stripeCheckoutPage.ts";
import { dateText, html, isSafeTarget, notice, page, type Notice } from "./stripeHtml.ts";
import { actOnPortal, renderPortal } from "./stripePortalPage.ts";

/** One page: how it looks, and what its buttons do. */
interface Page {
  render(note: Notice | null): string;
  act(form: URLSearchParams): PageResult;
}

/** A form holds a few short fields. */
const FORM_BYTES = 10_000;
const HEADERS = {
  "content-type": "text/html; charset=utf-8",
  "cache-control": "no-store",
  "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
};

/** Answers everything that is not the API: `/c/pay/…`, `/p/session/…`, `/i/…` and the front page. */
export async function answerPage(
  stripe: FakeStripe,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const { pathname } = new URL(request.url ?? "/", "http://stripe.invalid");
  const found = findPage(stripe, pathname);
  if (!found) {
    const body = html`<h1>Nothing here</h1>
      <p>This page does not exist, or the shop has forgotten it.</p>`;
    return send(response, 404, page("Nothing here", body, true));
  }
  const notes = notesOf(stripe);
  if (request.method === "GET") {
    const note = notes.get(pathname) ?? null;
    notes.delete(pathname);
    return send(response, 200, found.render(note));
  }
  if (request.method !== "POST") return send(response, 405, "");
  const form = await readForm(request);
  if (!form) return send(response, 413, "");
  const result = found.act(form);
  // Always away from the form: reloading a page must not pay twice.
  const away = "redirect" in result && isSafeTarget(result.redirect) ? result.redirect : null;
  if ("notice" in result && result.notice) notes.set(pathname, result.notice);
  response.writeHead(303, { location: away ?? pathname, "cache-control": "no-store" });
  response.end();
}

/** What a page has to say when it is looked at next, by its path. */
const notesByShop = new WeakMap<FakeStripe, Map<string, Notice>>();

function notesOf(stripe: FakeStripe): Map<string, Notice> {
  const notes = notesByShop.get(stripe) ?? new Map<string, Notice>();
  notesByShop.set(stripe, notes);
  return notes;
}

function findPage(stripe: FakeStripe, path: string): Page | null {
  if (path === "/") return frontPage(stripe);
  const [, id] = /^\/(?:c\/pay|p\/session|i)\/(\w+)$/.exec(path) ?? [];
  if (id === undefined) return null;
  for (const account of [stripe.account("test"), stripe.account("live")]) {
    const found = path.startsWith("/i/") ? invoicePage(stripe, account, id) : sessionPage(stripe, account, id);
    if (found) return found;
  }
  return null;
}

function sessionPage(stripe: FakeStripe, account: Account, id: string): Page | null {
  const checkout = find(account, "checkoutSessions", id);
  if (checkout)
    return {
      render: (note) => renderCheckout(account, checkout, note),
      act: (form) => actOnCheckout(stripe, account, checkout, form),
    };
  const portal = find(account, "portalSessions", id);
  if (!portal || !find(account, "customers", portal.customer)) return null;
  return {
    render: (note) => renderPortal(stripe, account, portal, note),
    act: (form) => actOnPortal(stripe, account, portal, form),
  };
}

function invoicePage(stripe: FakeStripe, account: Account, id: string): Page | null {
  const invoice = find(account, "invoices", id);
  if (!invoice) return null;
  return {
    render: (note) => renderInvoice(account, id, note) ?? "",
    act(form) {
      if (invoice.status !== "open") return { notice: null };
      const outcome = stripe.portal.pay(id, { confirmed: form.get("action") === "confirm" });
      const paid = outcome === "paid";
      return { notice: paid ? { text: "Paid. Thank you." } : { text: "The card was not accepted.", bad: true } };
    },
  };
}

/** Says what this is, and lets time pass. */
function frontPage(stripe: FakeStripe): Page {
  return {
    render(note) {
      const body = html`<h1>${stripe.settings.shopName}</h1>
        ${notice(note)}
        <section class="card">
          <p>
            This stands in for Stripe while no Stripe key is set. It looks and answers like it, but no card is charged
            and nothing leaves this machine.
          </p>
          <p class="soft">In this shop it is ${dateText(stripe.now())}.</p>
          <form method="post"><button name="action" value="month">Let a month pass</button></form>
        </section>`;
      return page(stripe.settings.shopName, body, true);
    },
    act(form) {
      if (form.get("action") !== "month") return { notice: null };
      stripe.advance({ months: 1, hours: 2 });
      return { notice: { text: "A month has passed." } };
    },
  };
}

async function readForm(request: IncomingMessage): Promise<URLSearchParams | null> {
  let body = "";
  for await (const chunk of request) {
    body += String(chunk);
    if (body.length > FORM_BYTES) return null;
  }
  return new URLSearchParams(body);
}

function send(response: ServerResponse, status: number, body: string): void {
  response.writeHead(status, HEADERS);
  response.end(body);
}
