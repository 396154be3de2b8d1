-- Of operators' calls, which endpoint; of them and of denied uses, which request.

-- +goose NO TRANSACTION
-- +goose Up

ALTER TABLE uses ADD COLUMN IF NOT EXISTS endpoint LowCardinality(String) AFTER position; -- "PUT /v1/keys/{id}"; '' for a product's uses
ALTER TABLE uses ADD COLUMN IF NOT EXISTS request_id String CODEC(ZSTD(1)) AFTER endpoint; -- req_...; '' for allowed uses of products
ALTER TABLE uses ADD INDEX IF NOT EXISTS i_request request_id TYPE bloom_filter(0.01) GRANULARITY 1;

-- +goose Down
ALTER TABLE uses DROP INDEX IF EXISTS i_request;
ALTER TABLE uses DROP COLUMN IF EXISTS request_id;
ALTER TABLE uses DROP COLUMN IF EXISTS endpoint;
