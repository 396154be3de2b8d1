-- Each event as the log holds it, byte for byte: its SHA-256 is `hash`. `data` is
-- of the newest version of the event's type, the document of the version that was
-- written.

-- +goose NO TRANSACTION
-- +goose Up

ALTER TABLE events ADD COLUMN IF NOT EXISTS document String CODEC(ZSTD(3)) AFTER data;

-- +goose Down
ALTER TABLE events DROP COLUMN IF EXISTS document;
