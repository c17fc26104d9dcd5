import { takesConnections } from "../../clients/hostNetwork.ts";
import { bad, ok, onHost, onSystem, skip, warn, type Check } from "./check.ts";

const ENV_FILE = "/etc/reef/reef.env";
const LEAST_CHARACTERS = 32;
/** Of different characters: fewer is a word or a row of the same. */
const LEAST_DIFFERENT = 12;

/** Why a secret is none; null: it is one. */
function weaknessOf(secret: string): string | null {
  if (secret.length < LEAST_CHARACTERS) return `has ${secret.length} characters, not ${LEAST_CHARACTERS}`;
  return new Set(secret).size < LEAST_DIFFERENT ? "repeats itself" : null;
}

const NO_TRIAL = "a trial: NODE_ENV is not production";

export const SETTINGS: readonly Check[] = [
  onHost("settings.readable", async ({ deps }) =>
    deps
      ? ok("all of them can be read")
      : bad("they can't be read; see above", `correct ${ENV_FILE} (.env.example says what each is)`),
  ),
  onSystem("settings.secrets", async ({ deps: { config } }) => {
    const names = ["JWT_SECRET", "OPENCLAW_GATEWAY_TOKEN", "GATEWAY_FILES_TOKEN"] as const;
    const weak = names.flatMap((name) => {
      const weakness = config[name] === undefined ? null : weaknessOf(config[name]);
      return weakness === null ? [] : [`${name} ${weakness}`];
    });
    if (weak.length === 0) return ok("long enough");
    return bad(weak.join("; "), `openssl rand -hex 32 makes one; put it into ${ENV_FILE}`);
  }),
  onSystem("settings.production", async ({ deps: { config }, place }) => {
    if (config.NODE_ENV === "production") return ok("production");
    if (!place.isInstalled) return skip(`NODE_ENV is ${config.NODE_ENV}: a trial`);
    return bad(`NODE_ENV is ${config.NODE_ENV}`, `NODE_ENV=production in ${ENV_FILE}`);
  }),
  onSystem("settings.app_url", async ({ deps: { config }, place }) => {
    const { protocol, host } = new URL(config.APP_URL);
    if (protocol !== "http:") return ok(`${protocol}//${host}`);
    if (place.isTrial) return skip(NO_TRIAL);
    return bad("links in mails lead to http, unprotected", `APP_URL=https://${host} in ${ENV_FILE}`);
  }),
  onSystem("settings.mail", async ({ deps: { config }, place }) => {
    if (config.SMTP_URL === undefined) {
      if (place.isTrial) return skip("no SMTP_URL: a trial writes mails to files");
      return bad("no SMTP_URL: mails wait in the outbox for ever", `SMTP_URL=smtps://user:secret@host in ${ENV_FILE}`);
    }
    const { hostname, port, protocol } = new URL(config.SMTP_URL);
    const number = Number(port) || (protocol === "smtps:" ? 465 : 587);
    if (await takesConnections(hostname, number)) return ok(`${hostname}:${number} takes connections`);
    return bad(
      `${hostname}:${number} takes no connection`,
      "is the name right, does the firewall let port 465 and 587 out?",
    );
  }),
  onSystem("settings.proxies", async ({ deps: { config }, place }) => {
    const n = config.TRUSTED_PROXIES;
    if (!place.hasNginx) return n === 0 ? ok("no proxy, none trusted") : skip(`no nginx here; ${n} proxy trusted`);
    if (n === 1) return ok("nginx is trusted, nobody else");
    const found =
      n === 0
        ? "everybody has nginx's address, so all share one limit"
        : `${n} trusted: clients may make up their address`;
    return bad(found, `TRUSTED_PROXIES=1 in ${ENV_FILE}, unless another proxy stands before nginx`);
  }),
  onSystem("settings.provider", async ({ deps: { config }, place }) => {
    if (config.OPENAI_API_KEY !== undefined) return ok("there is a key");
    if (place.isTrial) return skip("npm start keeps the provider's key to itself");
    return bad(
      "no OPENAI_API_KEY: nothing is heard or spoken",
      `OPENAI_API_KEY=… in ${ENV_FILE} and in the gateway's file`,
    );
  }),
  onSystem("settings.stripe", async ({ deps: { config, stripe } }) => {
    if (!stripe.isConfigured) return skip("no STRIPE_SECRET_KEY: nothing is sold");
    if (config.STRIPE_WEBHOOK_SECRETS.length === 0)
      return bad(
        "no STRIPE_WEBHOOK_SECRETS: what people pay for is never heard of",
        `put the endpoint's whsec_… into ${ENV_FILE}`,
      );
    if (config.NODE_ENV === "production" && !stripe.isLive)
      return warn("a test key: nobody really pays", `STRIPE_SECRET_KEY=sk_live_… in ${ENV_FILE}`);
    return ok(stripe.isLive ? "live" : "test");
  }),
];
