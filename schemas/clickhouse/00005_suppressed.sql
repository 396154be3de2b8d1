-- Uses of keys that are not known, beyond a node's budget: counted by keyspace
-- and reason, and not recorded one by one.

-- +goose NO TRANSACTION
-- +goose Up

-- A message of kind suppressed counts for the numbers first .. first+count-1; what
-- they were is in use_suppressed.
ALTER TABLE use_batches MODIFY COLUMN kind Enum8('uses' = 1, 'open' = 2, 'close' = 3, 'gap' = 4, 'suppressed' = 5, 'trimmed' = 100);

-- One row per message, keyspace and reason. The writer inserts it before
-- use_batches, so the counts of every message that the copy has are here.
CREATE TABLE IF NOT EXISTS use_suppressed (
    seq      UInt64 CODEC(Delta, ZSTD(1)),               -- of the message in the use stream
    stored   DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)), -- by the stream's clock
    node     LowCardinality(String),
    epoch    Int64 CODEC(Delta, ZSTD(1)),                -- microseconds: when the node started
    time     DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)), -- of the first decision, by the node's clock
    keyspace LowCardinality(String),                     -- that the requests named, '' for none
    reason   LowCardinality(String),                     -- why they were denied
    n        UInt64 CODEC(ZSTD(1))                       -- decisions
) ENGINE = MergeTree
PARTITION BY (toYYYYMM(stored), intDiv(seq, 1000000000000))
ORDER BY (keyspace, time, seq);

-- +goose Down
DROP TABLE IF EXISTS use_suppressed;
