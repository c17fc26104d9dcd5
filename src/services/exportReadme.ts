/** README.txt of an export. */
export const README = `What Reef keeps about you
=========================

This archive was made for you, at your request. It holds everything that is kept about you. Keep it safe: whoever has
it can read your conversations.

account.json     who you are here: name, address, time zone, plan, linked Apple or Google accounts
sessions.json    the devices that were signed in, when and from where
usage.json       "days": what you used each day (days of your own time zone); "ledger": each single use, your plan then,
                 the model, its state and its cost in US dollars. A use is "reserved" while a question waits, then
                 "committed", or "released" when it was given back to you
audit.json       what happened to your account's security: sign-ins, failed ones, changes
mails.json       mails to you that wait to be sent

assistants/      a folder for each assistant, its name followed by the end of its id:
  conversation.md      what you two said, for reading (plain text; Markdown viewers show it nicely)
  conversation.jsonl   the same for programs: one message per line, with what became of each question ("turn")
  assistant.json       its settings
  workspace/           its own files: MEMORY.md and USER.md are what it remembers, SOUL.md is its character
  left-out.txt         only where something of its folder is not in here: what, and why

Times in JSON files are UTC; those in conversation.md are of your own time zone. Names of files were changed where
a computer could not have unpacked them.

Not in here: your password and your sign-in tokens (only their fingerprints are kept, and they are useless to you),
short-lived technical copies (the answer to a repeated request, for a day; the text of an answer while it is written,
for an hour), the gateway's working copy of each conversation, and assistants that you deleted.
`;
