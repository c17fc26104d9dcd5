import { change, emit, find, need, timeOf, type Account } from "./stripeAccount.ts";
import { invalidRequest } from "./stripeErrors.ts";
import type { Params } from "./stripeParams.ts";
import {
  newStripeId,
  type Card,
  type Charge,
  type Dispute,
  type Invoice,
  type InvoicePayment,
  type PaymentIntent,
  type Refund,
} from "./stripeState.ts";

/** The payment by which an invoice is to be paid; made when there is none yet. */
export function intentOf(account: Account, invoice: Invoice): PaymentIntent {
  const known = paymentsOf(account, invoice.id).find((payment) => payment.status === "open");
  if (known) return need(account, "paymentIntents", known.payment.payment_intent as string);
  const intent = makeIntent(account, invoice);
  const payment: InvoicePayment = {
    id: newStripeId("inpay"),
    object: "invoice_payment",
    amount_paid: null,
    amount_requested: invoice.amount_due,
    created: intent.created,
    currency: invoice.currency,
    invoice: invoice.id,
    is_default: true,
    livemode: account.live,
    payment: { payment_intent: intent.id, type: "payment_intent" },
    status: "open",
    status_transitions: { canceled_at: null, paid_at: null },
  };
  account.objects.invoicePayments[payment.id] = payment;
  emit(account, "payment_intent.created", intent);
  return intent;
}

export function paymentsOf(account: Account, invoiceId: string): InvoicePayment[] {
  return Object.values(account.objects.invoicePayments).filter((payment) => payment.invoice === invoiceId);
}

function makeIntent(account: Account, invoice: Invoice): PaymentIntent {
  const id = newStripeId("pi");
  const intent: PaymentIntent = {
    id,
    object: "payment_intent",
    allowed_payment_method_types: null,
    amount: invoice.amount_due,
    amount_capturable: 0,
    amount_received: 0,
    application: null,
    application_fee_amount: null,
    automatic_payment_methods: null,
    canceled_at: null,
    cancellation_reason: null,
    capture_method: "automatic",
    client_secret: `${id}_secret_${newStripeId("x").slice(3)}`,
    confirmation_method: "automatic",
    created: timeOf(account, invoice.customer),
    currency: invoice.currency,
    customer: invoice.customer,
    customer_account: null,
    description: "Subscription creation",
    excluded_payment_method_types: null,
    last_payment_error: null,
    latest_charge: null,
    livemode: account.live,
    managed_payments: null,
    metadata: {},
    next_action: null,
    on_behalf_of: null,
    payment_method: null,
    payment_method_configuration_details: null,
    payment_method_options: null,
    payment_method_types: ["card"],
    payment_record: null,
    processing: null,
    receipt_email: null,
    review: null,
    setup_future_usage: "off_session",
    shipping: null,
    source: null,
    statement_descriptor: null,
    statement_descriptor_suffix: null,
    status: "requires_payment_method",
    transfer_group: null,
  };
  account.objects.paymentIntents[id] = intent;
  return intent;
}

/** Charges the card. What the bank says is what comes back. */
export function chargeIntent(account: Account, intent: PaymentIntent, method: string, card: Card): Card {
  intent.payment_method = method;
  if (card === "requires_action") {
    intent.status = "requires_action";
    intent.next_action = { type: "use_stripe_sdk", use_stripe_sdk: {} };
    emit(account, "payment_intent.requires_action", intent);
    return card;
  }
  const charge = makeCharge(account, intent, card === "ok");
  intent.latest_charge = charge.id;
  intent.next_action = null;
  if (card === "ok") {
    Object.assign(intent, { status: "succeeded", amount_received: intent.amount, last_payment_error: null });
    emit(account, "charge.succeeded", charge);
    emit(account, "payment_intent.succeeded", intent);
    return card;
  }
  intent.status = "requires_payment_method";
  intent.last_payment_error = {
    charge: charge.id,
    code: "card_declined",
    decline_code: "generic_decline",
    message: "Your card was declined.",
    type: "card_error",
  };
  emit(account, "charge.failed", charge);
  emit(account, "payment_intent.payment_failed", intent);
  return card;
}

function makeCharge(account: Account, intent: PaymentIntent, paid: boolean): Charge {
  const charge: Charge = {
    id: newStripeId("ch"),
    object: "charge",
    amount: intent.amount,
    amount_captured: paid ? intent.amount : 0,
    amount_refunded: 0,
    application: null,
    application_fee: null,
    application_fee_amount: null,
    balance_transaction: paid ? newStripeId("txn") : null,
    billing_details: { address: null, email: null, name: null, phone: null, tax_id: null },
    calculated_statement_descriptor: null,
    captured: paid,
    created: timeOf(account, intent.customer),
    currency: intent.currency,
    customer: intent.customer,
    description: intent.description,
    disputed: false,
    failure_balance_transaction: null,
    failure_code: paid ? null : "card_declined",
    failure_message: paid ? null : "Your card was declined.",
    fraud_details: {},
    livemode: account.live,
    metadata: {},
    on_behalf_of: null,
    outcome: null,
    paid,
    payment_intent: intent.id,
    payment_method: intent.payment_method,
    payment_method_details: null,
    receipt_email: null,
    receipt_number: null,
    receipt_url: null,
    refunded: false,
    review: null,
    shipping: null,
    source: null,
    source_transfer: null,
    statement_descriptor: null,
    statement_descriptor_suffix: null,
    status: paid ? "succeeded" : "failed",
    transfer_data: null,
    transfer_group: null,
  };
  account.objects.charges[charge.id] = charge;
  return charge;
}

/** Gives money back: of a charge or of a payment, all that is left unless `amount` (minor units) says less. */
export function createRefund(account: Account, params: Params): Refund {
  const charge = chargeOf(account, params);
  if (charge.refunded)
    throw invalidRequest(`Charge ${charge.id} has already been refunded.`, { code: "charge_already_refunded" });
  if (!charge.paid) throw invalidRequest(`Charge ${charge.id} has not been paid.`);
  const left = charge.amount - charge.amount_refunded;
  const amount: number = params.amount ?? left;
  if (amount > left)
    throw invalidRequest(
      `Refund amount ($${amount / 100}) is greater than unrefunded amount on charge ($${left / 100})`,
      {
        param: "amount",
      },
    );
  const refund: Refund = {
    id: newStripeId("re"),
    object: "refund",
    amount,
    balance_transaction: newStripeId("txn"),
    charge: charge.id,
    created: timeOf(account, charge.customer),
    currency: charge.currency,
    customer: charge.customer,
    customer_account: null,
    metadata: params.metadata || {},
    payment_intent: charge.payment_intent,
    payment_method: charge.payment_method,
    reason: params.reason ?? null,
    receipt_number: null,
    source_transfer_reversal: null,
    status: "succeeded",
    transfer_reversal: null,
  };
  account.objects.refunds[refund.id] = refund;
  change(account, "charge.refunded", charge, () => {
    charge.amount_refunded += amount;
    charge.refunded = charge.amount_refunded === charge.amount;
  });
  emit(account, "refund.created", refund);
  return refund;
}

function chargeOf(account: Account, params: Params): Charge {
  if (params.charge) return need(account, "charges", params.charge, "charge");
  if (!params.payment_intent)
    throw invalidRequest("One of the following params should be provided for this request: payment_intent or charge.", {
      code: "parameter_missing",
    });
  const intent = need(account, "paymentIntents", params.payment_intent, "payment_intent");
  if (!intent.latest_charge) throw invalidRequest("This PaymentIntent does not have a successful charge to refund.");
  return need(account, "charges", intent.latest_charge);
}

/** The person tells the bank that the charge was not theirs. Stripe's default leaves the subscription alone. */
export function openDispute(account: Account, chargeId: string, reason = "fraudulent"): Dispute {
  const charge = need(account, "charges", chargeId);
  if (!charge.paid || charge.disputed) throw new Error(`charge ${chargeId} can't be disputed`);
  const created = timeOf(account, charge.customer);
  const dispute: Dispute = {
    id: newStripeId("du"),
    object: "dispute",
    amount: charge.amount,
    balance_transactions: [],
    charge: charge.id,
    created,
    currency: charge.currency,
    enhanced_eligibility_types: [],
    evidence: {} as Dispute["evidence"],
    evidence_details: {
      due_by: created + 7 * 86_400,
      enhanced_eligibility: {},
      has_evidence: false,
      past_due: false,
      submission_count: 0,
      submission_method: "manual",
    },
    intended_submission_method: null,
    is_charge_refundable: false,
    livemode: account.live,
    metadata: {},
    payment_intent: charge.payment_intent,
    reason,
    status: "needs_response",
  };
  account.objects.disputes[dispute.id] = dispute;
  charge.disputed = true;
  emit(account, "charge.dispute.created", dispute);
  emit(account, "charge.dispute.funds_withdrawn", dispute);
  return dispute;
}

export function closeDispute(account: Account, disputeId: string, how: "lost" | "won"): Dispute {
  const dispute = need(account, "disputes", disputeId);
  change(account, "charge.dispute.closed", dispute, () => void (dispute.status = how));
  if (how === "won") emit(account, "charge.dispute.funds_reinstated", dispute);
  return dispute;
}

/** Marks the invoice's payment as done or as given up. */
export function closePayment(account: Account, invoice: Invoice, status: "canceled" | "paid"): void {
  const payment = paymentsOf(account, invoice.id).find((one) => one.status === "open");
  if (!payment) return;
  const at = timeOf(account, invoice.customer);
  payment.status = status;
  if (status === "paid") {
    payment.amount_paid = invoice.amount_due;
    payment.status_transitions.paid_at = at;
    emit(account, "invoice_payment.paid", payment);
    return;
  }
  payment.status_transitions.canceled_at = at;
  const intent = find(account, "paymentIntents", payment.payment.payment_intent as string);
  if (!intent || intent.status === "succeeded") return;
  Object.assign(intent, { status: "canceled", canceled_at: at, cancellation_reason: "void_invoice" });
  emit(account, "payment_intent.canceled", intent);
}
