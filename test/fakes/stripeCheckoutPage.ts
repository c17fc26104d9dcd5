import type { FakeStripe } from "./stripe.ts";
import { find, type Account } from "./stripeAccount.ts";
import { action, dateText, html, money, notice, page, type Html, type Notice } from "./stripeHtml.ts";
import type { CheckoutSession, Price } from "./stripeState.ts";

/** What a page's form leads to: another place, or the page again with a word about it. */
export type PageResult = { redirect: string } | { notice: Notice | null };

export function priceText(price: Price): string {
  const { interval, interval_count: count } = price.recurring!;
  const every = count === 1 ? interval : `${count} ${interval}s`;
  return `${money(price.unit_amount ?? 0, price.currency)} per ${every}`;
}

export function productName(account: Account, price: Price): string {
  return find(account, "products", price.product)?.name ?? "Subscription";
}

/** Where Stripe sends the person after paying. */
export function successUrl(session: CheckoutSession): string {
  return (session.success_url ?? "").replaceAll("{CHECKOUT_SESSION_ID}", session.id);
}

export function renderCheckout(account: Account, session: CheckoutSession, note: Notice | null): string {
  const cart = find(account, "carts", session.id)!;
  const price = find(account, "prices", cart.price)!;
  const name = productName(account, price);
  const waiting = isWaiting(account, session);
  const email = find(account, "customers", session.customer)?.email ?? session.customer_email;
  const summary = html`<section class="card">
    <p class="soft">${account.settings.shopName}</p>
    <h2>Subscribe to ${name}</h2>
    <p class="price">${money(session.amount_total ?? 0, price.currency)}</p>
    <p class="soft">${priceText(price)}, until cancelled</p>
    <div class="row">
      <span>${name}${cart.quantity > 1 && ` × ${cart.quantity}`}</span
      ><span>${money(session.amount_subtotal ?? 0, price.currency)}</span>
    </div>
    <div class="row">
      <strong>Total due today</strong><strong>${money(session.amount_total ?? 0, price.currency)}</strong>
    </div>
    ${email && html`<div class="row"><span class="soft">For</span><span class="soft">${email}</span></div>`}
  </section>`;
  const body = session.status !== "open" ? closed(session) : waiting ? bankQuestion() : payment();
  return page(
    `Subscribe to ${name}`,
    html`<h1>Checkout</h1>
      ${notice(note)}
      <div class="columns">${summary}${body}</div>`,
  );
}

function payment(): Html {
  return html`<section class="card">
    <h2>Pay with a play card</h2>
    <p class="soft">Choose what the bank says.</p>
    ${action("Pay", "pay", { style: "main" })}${action("Pay with a card that needs confirmation", "needs_confirmation")}
    ${action("Pay with a card that is declined", "decline")}${action("Back without paying", "leave", { style: "bad" })}
  </section>`;
}

function bankQuestion(): Html {
  return html`<section class="card">
    <h2>Your bank asks: is it you?</h2>
    <p class="soft">A real bank would send a code or open its app now.</p>
    ${action("Yes, confirm the payment", "confirm", { style: "main" })}${action("No, refuse it", "refuse", { style: "bad" })}
  </section>`;
}

function closed(session: CheckoutSession): Html {
  const complete = session.status === "complete";
  const target = complete ? successUrl(session) : session.cancel_url;
  return html`<section class="card">
    <h2>${complete ? "This is paid" : "This checkout has expired"}</h2>
    <p class="soft">${complete ? "There is nothing left to do here." : "Go back and start again."}</p>
    ${target && html`<a class="button" href="${target}">Back to the app</a>`}
  </section>`;
}

/** The bank has asked and not been answered. */
function isWaiting(account: Account, session: CheckoutSession): boolean {
  const cart = find(account, "carts", session.id);
  const begun = find(account, "subscriptions", cart?.subscription ?? null);
  const method = begun?.status === "incomplete" ? begun.default_payment_method : null;
  return method !== null && account.objects.cards[method] === "requires_action";
}

export function actOnCheckout(
  stripe: FakeStripe,
  account: Account,
  session: CheckoutSession,
  form: URLSearchParams,
): PageResult {
  const what = form.get("action");
  if (what === "leave" && session.cancel_url) return { redirect: session.cancel_url };
  if (session.status !== "open") return { notice: null };
  if (what === "confirm" && isWaiting(account, session)) {
    stripe.confirmCheckout(session.id);
    return { redirect: successUrl(session) };
  }
  if (what === "refuse" || what === "decline") {
    stripe.completeCheckout(session.id, { card: "declined" });
    return { notice: { text: "The card was declined. Nothing was paid; try another one.", bad: true } };
  }
  if (what === "needs_confirmation") stripe.completeCheckout(session.id, { card: "requires_action" });
  if (what !== "pay") return { notice: null };
  stripe.completeCheckout(session.id);
  return { redirect: successUrl(session) };
}

/** The page of an invoice that waits for its money. */
export function renderInvoice(account: Account, id: string, note: Notice | null): string | null {
  const invoice = find(account, "invoices", id);
  if (!invoice) return null;
  const open = invoice.status === "open";
  const body = html`<h1>Invoice ${invoice.number ?? ""}</h1>
    ${notice(note)}
    <section class="card">
      <p class="price">${money(invoice.amount_due, invoice.currency)}</p>
      <p class="soft">${dateText(invoice.created)} · ${invoice.status ?? ""}</p>
      ${invoice.lines.data.map((line) => html`<div class="row"><span>${line.description ?? ""}</span><span>${money(line.amount, line.currency)}</span></div>`)}
    </section>
    ${open && html`<section class="card">${action("Pay with the card on file", "pay", { style: "main" })}${action("Confirm with the bank and pay", "confirm")}</section>`}`;
  return page("Invoice", body, true);
}
