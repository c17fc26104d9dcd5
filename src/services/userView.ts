import type { Profile } from "../db/profiles.ts";
import type { DailyUse, Usage } from "../db/usage.ts";
import type { User } from "../db/users.ts";

/** A person as the API shows them. */
export function renderUser(user: User) {
  return {
    id: user.id,
    email: user.email,
    name: user.name,
    avatar_url: user.avatarUrl,
    email_verified: user.emailVerified,
    timezone: user.timezone,
    plan: user.plan,
    created_at: user.createdAt.toISOString(),
  };
}

/** A person as they see themselves. */
export function renderProfile(profile: Profile) {
  return {
    ...renderUser(profile),
    timezone_changed_at: profile.timezoneChangedAt?.toISOString() ?? null,
    has_password: profile.hasPassword,
    providers: profile.providers,
  };
}

/** Today's use as the contract shows it. */
export function renderUsage(today: Usage, assistants: { used: number; limit: number }) {
  const amount = (used: number, limit: number) => ({ used, limit, remaining: Math.max(0, limit - used) });
  const { used, limits } = today;
  return {
    date: today.date,
    timezone: today.timezone,
    reset_at: today.resetAt.toISOString(),
    plan: today.plan,
    text_messages: amount(used.textMessages, limits.textMessages),
    voice_input_seconds: amount(used.voiceInputSeconds, limits.voiceInputSeconds),
    voice_output_seconds: amount(used.voiceOutputSeconds, limits.voiceOutputSeconds),
    tts_characters: amount(used.ttsCharacters, limits.ttsCharacters),
    assistants: amount(assistants.used, assistants.limit),
  };
}

export function renderDailyUse(day: DailyUse) {
  return {
    date: day.date,
    text_messages: day.textMessages,
    voice_input_seconds: day.voiceInputSeconds,
    voice_output_seconds: day.voiceOutputSeconds,
    tts_characters: day.ttsCharacters,
  };
}
