-- Where the folder lies on the gateway's own host: whoever asks its files process names it, and a wrong address is refused
-- instead of looking like a gateway without files.
alter table gateways add column folder text;
