-- An address that is not known stood in `ip` as ::, as the address :: does.

-- +goose NO TRANSACTION
-- +goose Up

ALTER TABLE uses ADD COLUMN IF NOT EXISTS ip_known Bool DEFAULT ip != toIPv6('::') AFTER ip;
ALTER TABLE events ADD COLUMN IF NOT EXISTS ip_known Bool DEFAULT ip != toIPv6('::') AFTER ip;

-- +goose Down
ALTER TABLE events DROP COLUMN IF EXISTS ip_known;
ALTER TABLE uses DROP COLUMN IF EXISTS ip_known;
