import { find, type Account } from "./stripeAccount.ts";
import { priceText, productName } from "./stripeCheckoutPage.ts";
import { action, dateText, html, money, notice, page, type Notice } from "./stripeHtml.ts";
import { portalFeatures, waitsForPeriodEnd } from "./stripePortal.ts";
import type { PortalSession, Price } from "./stripeState.ts";
import { ENDED } from "./stripeSubscriptions.ts";
import { previewInvoice } from "./stripeUpdates.ts";

/** The page of a session that was opened to confirm one change (`subscription_update_confirm`); null when that is done. */
export function renderConfirm(account: Account, session: PortalSession, note: Notice | null): string | null {
  const change = session.flow?.subscription_update_confirm;
  const subscription = find(account, "subscriptions", change?.subscription ?? null);
  const price = find(account, "prices", change?.items[0]?.price ?? null);
  const item = subscription?.items.data[0];
  if (!subscription || !price || !item || item.price.id === price.id) return null;
  if (subscription.schedule || ENDED.includes(subscription.status)) return null;
  const later = waitsForPeriodEnd(account, subscription, price);
  const { proration_behavior } = portalFeatures(account, subscription.customer).subscription_update;
  const preview = previewInvoice(account, {
    subscription: subscription.id,
    subscription_details: { items: [{ id: item.id, price: price.id }], proration_behavior },
  });
  const fields = { subscription: subscription.id, price: price.id };
  const body = html`<h1>Confirm your change</h1>
    ${notice(note)}
    <section class="card">
      <h2>${productName(account, price)}</h2>
      <p class="price">${money(price.unit_amount ?? 0, price.currency)}</p>
      <p class="soft">${priceText(price)}, instead of ${priceText(item.price as Price)}</p>
      <div class="row"><span>Begins</span><span>${later ? dateText(item.current_period_end) : "now"}</span></div>
      <div class="row">
        <strong>Total due today</strong
        ><strong>${money(later ? 0 : Math.max(0, preview.amount_due), price.currency)}</strong>
      </div>
      ${action("Confirm", "plan", { style: "main", fields })}
      ${session.return_url && html`<a class="button" href="${session.return_url}">Back without changing</a>`}
    </section>`;
  return page("Confirm your change", body, true);
}
