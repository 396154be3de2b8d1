-- When the decisions of a gap were made: between these instants, by the node's
-- clock. Of a trimmed range: by the stream's clock. 1970 where that is not known.

-- +goose NO TRANSACTION
-- +goose Up

ALTER TABLE use_batches ADD COLUMN IF NOT EXISTS since DateTime64(3, 'UTC') CODEC(ZSTD(1));
ALTER TABLE use_batches ADD COLUMN IF NOT EXISTS until DateTime64(3, 'UTC') CODEC(ZSTD(1));

-- +goose Down
ALTER TABLE use_batches DROP COLUMN IF EXISTS until;
ALTER TABLE use_batches DROP COLUMN IF EXISTS since;
