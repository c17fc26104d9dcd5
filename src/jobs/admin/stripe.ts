import { readStripeTrouble } from "../../clients/stripeTrouble.ts";
import { syncPrices, UnsellablePrice } from "../../services/stripePrices.ts";
import { takeWords, type Command } from "./command.ts";

/** `npm run admin -- stripe …`: what is sold. */
export const stripeCommands: Record<string, Command> = {
  "stripe sync-prices": {
    usage: "stripe sync-prices",
    summary: "makes products, prices and the portal at Stripe what the plans say",
    help: `Makes or finds the products (reef_pro, …), the prices (by lookup key: reef_pro_monthly, …) and the portal's settings
in the Stripe account of STRIPE_SECRET_KEY, and keeps their ids. The key says whether in test or in live mode; both are
kept apart. The amounts are those of the table plan_limits. A changed amount is a new price: it takes the lookup key over,
the old one is archived, and whoever has it goes on paying it. Prints what it did, line by line; run again it does what is
missing, or nothing.`,
    read(words) {
      takeWords(words);
      return async (deps, person) => {
        if (!deps.stripe.isConfigured) return { code: 2, sentence: "STRIPE_SECRET_KEY is missing: nothing is sold." };
        const mode = deps.stripe.isLive ? "live" : "test";
        console.log(`mode: ${mode}`);
        try {
          const changes = await syncPrices(deps, person, (line) => console.log(line));
          if (changes === null) return "Another process is at it; run it again in a moment.";
          console.log(changes === 0 ? "Nothing was to be done." : `Done: ${changes} changes.`);
          return null;
        } catch (error) {
          const trouble = readStripeTrouble(error);
          if (!trouble) {
            if (error instanceof UnsellablePrice) return error.message;
            throw error;
          }
          const { type, code, status, requestId } = trouble;
          const what = [type, code, status, requestId].filter((part) => part !== undefined).join(" ");
          return `Stripe did not do what it was asked (${what}). What was done stays; run it again.`;
        }
      };
    },
  },
};
