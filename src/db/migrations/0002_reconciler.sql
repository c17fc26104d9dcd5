-- When a wake-up last failed: the next attempt waits a little (src/db/workingSet.ts).
alter table assistants add column failed_at timestamptz;
-- SHA-256 of the configuration that Reef wrote last: what differs from it was written by somebody else.
alter table gateways add column written_hash text;
