import type { FakeStripe } from "./stripe.ts";
import { find, type Account } from "./stripeAccount.ts";
import { priceText, productName, type PageResult } from "./stripeCheckoutPage.ts";
import { renderConfirm } from "./stripeConfirmPage.ts";
import { chargeableMethod } from "./stripeCustomers.ts";
import { action, dateText, html, money, notice, page, type Html, type Notice } from "./stripeHtml.ts";
import { portalFeatures, portalPrices } from "./stripePortal.ts";
import type { Card, PortalSession, Price, Subscription } from "./stripeState.ts";
import { ENDED } from "./stripeSubscriptions.ts";
import type { TrueSubscription } from "./stripeTruth.ts";

const CARD_WORDS: Record<Card, string> = {
  ok: "a card that works",
  declined: "a card that is declined",
  requires_action: "a card that needs confirmation",
};

export function renderPortal(
  stripe: FakeStripe,
  account: Account,
  session: PortalSession,
  note: Notice | null,
): string {
  const confirm = renderConfirm(account, session, note);
  if (confirm !== null) return confirm;
  const { customer } = session;
  const truth = stripe.truth(customer);
  const running = truth.subscriptions.filter(({ status }) => !ENDED.includes(status));
  const now = account.now();
  const body = html`<h1>Your subscription</h1>
    ${notice(note)} ${running.length === 0 && html`<section class="card"><p>You have no subscription.</p></section>`}
    ${running.map((one) => subscriptionCard(account, find(account, "subscriptions", one.id)!, one))}
    ${cardCard(account, customer)}${historyCard(account, customer)}
    <section class="card">
      <h2>Time</h2>
      <p class="soft">In this shop it is ${dateText(now)}.</p>
      ${action("Let a month pass", "month")}
    </section>
    ${session.return_url && html`<a class="button" href="${session.return_url}">Back to the app</a>`}`;
  return page("Your subscription", body, true);
}

function tag(one: TrueSubscription): Html {
  const words: Record<string, string> = { active: "Active", past_due: "Payment due", incomplete: "Not paid yet" };
  return html`<span class="tag${one.status !== "active" && " bad"}">${words[one.status] ?? one.status}</span>`;
}

function subscriptionCard(account: Account, subscription: Subscription, one: TrueSubscription): Html {
  const price = subscription.items.data[0]!.price as Price;
  const features = portalFeatures(account, subscription.customer);
  const fields = { subscription: one.id };
  const next = find(account, "prices", one.nextPrice);
  const end = one.endsAt === null ? `Renews on ${dateText(one.periodEnd)}` : `Ends on ${dateText(one.endsAt)}`;
  const ends = one.endsAt !== null;
  const cancellable = !ends && features.subscription_cancel.enabled && one.status !== "incomplete";
  return html`<section class="card">
    <h2>${productName(account, price)} ${tag(one)}</h2>
    <p>${priceText(price)}</p>
    <p class="soft">${end}</p>
    ${next && html`<p class="soft">From then on: ${productName(account, next)}, ${priceText(next)}</p>`}
    ${one.due && dueRows(one.due, price.currency)}
    ${next && action("Stay with this plan", "plan", { style: "main", fields: { ...fields, price: price.id } })}
    ${ends && action("Keep the subscription", "resume", { style: "main", fields })}
    ${cancellable && action("Cancel the subscription", "cancel", { style: "bad", fields })}
    ${planForms(account, subscription)}
  </section>`;
}

function dueRows(due: NonNullable<TrueSubscription["due"]>, currency: string): Html {
  const fields = { invoice: due.invoice };
  return html`<div class="row"><strong>Due</strong><strong>${money(due.amount, currency)}</strong></div>
    ${due.nextAttempt !== null && html`<p class="soft">Next try on ${dateText(due.nextAttempt)}</p>`}
    ${action(due.actionRequired ? "Confirm with the bank and pay" : "Pay now", due.actionRequired ? "confirm" : "pay", { style: "main", fields })}`;
}

function planForms(account: Account, subscription: Subscription): Html | null {
  const current = subscription.items.data[0]!.price.id;
  const others = portalPrices(account, subscription.customer).filter((price) => price.id !== current);
  if (others.length === 0 || subscription.status === "incomplete") return null;
  return html`<h2 style="margin-top:1rem">Change plan</h2>
    ${others.map((price) =>
      action(`${productName(account, price)} – ${priceText(price)}`, "plan", {
        fields: { subscription: subscription.id, price: price.id },
      }),
    )}`;
}

function cardCard(account: Account, customer: string): Html | null {
  if (!portalFeatures(account, customer).payment_method_update.enabled) return null;
  const running = Object.values(account.objects.subscriptions).findLast(
    (one) => one.customer === customer && !ENDED.includes(one.status),
  );
  const id = chargeableMethod(account, customer, running ?? null);
  const method = find(account, "paymentMethods", id);
  const words = method?.card
    ? `${method.card.brand} •••• ${method.card.last4}: ${CARD_WORDS[account.objects.cards[method.id] ?? "ok"]}`
    : "No card yet";
  return html`<section class="card">
    <h2>Card</h2>
    <p>${words}</p>
    ${(Object.keys(CARD_WORDS) as Card[]).map((card) =>
      action(`Change to ${CARD_WORDS[card]}`, "card", { fields: { card } }),
    )}
  </section>`;
}

function historyCard(account: Account, customer: string): Html | null {
  const invoices = Object.values(account.objects.invoices)
    .filter((invoice) => invoice.customer === customer && invoice.status !== "draft")
    .toReversed();
  if (invoices.length === 0 || !portalFeatures(account, customer).invoice_history.enabled) return null;
  return html`<section class="card">
    <h2>Invoices</h2>
    ${invoices
      .slice(0, 12)
      .map(
        (invoice) =>
          html`<div class="row">
            <span>${dateText(invoice.created)}</span
            ><span>${money(invoice.amount_due, invoice.currency)} · ${invoice.status ?? ""}</span>
          </div>`,
      )}
  </section>`;
}

/** Only what belongs to the session's customer. */
export function actOnPortal(
  stripe: FakeStripe,
  account: Account,
  session: PortalSession,
  form: URLSearchParams,
): PageResult {
  const subscription = find(account, "subscriptions", form.get("subscription"));
  const invoice = find(account, "invoices", form.get("invoice"));
  const mine = (object: { customer: string } | null) => object !== null && object.customer === session.customer;
  const what = form.get("action");
  if (what === "month") {
    stripe.advance({ months: 1, hours: 2 });
    return { notice: { text: "A month has passed." } };
  }
  if (what === "card") return changeCard(stripe, session, form.get("card"));
  if (mine(invoice) && invoice!.status === "open" && (what === "pay" || what === "confirm")) {
    const outcome = stripe.portal.pay(invoice!.id, { confirmed: what === "confirm" });
    return { notice: outcome === "paid" ? { text: "Paid. Thank you." } : { text: NOT_PAID, bad: true } };
  }
  if (!mine(subscription) || ENDED.includes(subscription!.status)) return { notice: null };
  return actOnSubscription(stripe, session, subscription!, what, form.get("price"));
}

const NOT_PAID = "The card was not accepted. Change it, or confirm with the bank.";

function changeCard(stripe: FakeStripe, session: PortalSession, card: string | null): PageResult {
  if (card === null || !(card in CARD_WORDS)) return { notice: null };
  stripe.portal.changeCard(session.customer, card as Card);
  return done(session, { text: "The card was changed." });
}

function actOnSubscription(
  stripe: FakeStripe,
  session: PortalSession,
  subscription: Subscription,
  what: string | null,
  price: string | null,
): PageResult {
  if (what === "cancel") {
    stripe.portal.cancel(subscription.id);
    return done(session, { text: "The subscription will end. Until then nothing changes." });
  }
  if (what === "resume") {
    stripe.portal.resume(subscription.id);
    return done(session, { text: "The subscription goes on." });
  }
  if (what !== "plan" || price === null) return { notice: null };
  const result = stripe.portal.changePlan(subscription.id, price);
  if (result === "declined") return { notice: { text: NOT_PAID, bad: true } };
  const text = result === "scheduled" ? "The plan will change at the end of the period." : "The plan was changed.";
  return done(session, { text });
}

/** A session that was opened for one thing leads back when that is done, if it says so. */
function done(session: PortalSession, note: Notice): PageResult {
  const after = session.flow?.after_completion;
  return after?.type === "redirect" && after.redirect ? { redirect: after.redirect.return_url } : { notice: note };
}
