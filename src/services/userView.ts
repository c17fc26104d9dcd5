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
