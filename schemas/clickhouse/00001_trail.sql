-- The copy of the lifecycle log. The log wins; these tables can be dropped and
-- filled again from it. Partitions, in all tables, are months of `stored`, the
-- log's own time; a batch of the writer is cut where the month changes, so that it
-- touches one partition and is atomic, and retention is DROP PARTITION by whole
-- months. That seq is in the partition key, in a term that is always 0, makes
-- max(seq) a matter of the parts' metadata: it is asked for all the time. The time
-- itself proves no order: the log's clock may jump, and be set back.
-- No table has a TTL: a TTL on event time would delete backfilled rows.

-- +goose NO TRANSACTION
-- +goose Up

-- Which log this is a copy of: one row, written by the first writer.
CREATE TABLE IF NOT EXISTS log_identity (
    id    String,
    since DateTime64(3, 'UTC')
) ENGINE = MergeTree ORDER BY tuple();

-- The trail: one row per lifecycle event. Kept for as long as the record must be
-- (seven years is common); it is small beside the uses.
-- Sorted by tenant, because auditors ask per tenant; a key's history and "who did
-- it" go through bloom filters, 0.02 bytes a row each.
CREATE TABLE IF NOT EXISTS events (
    seq          UInt64 CODEC(Delta, ZSTD(1)),               -- in the lifecycle log
    stored       DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)), -- by the log's clock
    time         DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)), -- by the writer's clock
    id           String CODEC(ZSTD(1)),                      -- ULID
    type         LowCardinality(String),                     -- key.created
    keyspace     LowCardinality(String),
    tenant       LowCardinality(String),                     -- '-' for keyspaces and readers
    kind         LowCardinality(String),                     -- key, role, keyspace, reader
    aggregate_id String CODEC(ZSTD(1)),                      -- key_01J..., or the id of what kind says
    rev          UInt64 CODEC(ZSTD(1)),                      -- 1..n within the aggregate
    prev         FixedString(32) CODEC(NONE),                -- SHA-256 of the aggregate's event before
    hash         FixedString(32) CODEC(NONE),                -- SHA-256 of this event
    source       LowCardinality(String),
    command      String CODEC(ZSTD(1)),                      -- idempotency, '' for none
    actor_kind   LowCardinality(String),
    actor_id     String CODEC(ZSTD(1)),
    ip           IPv6 CODEC(ZSTD(1)),                        -- :: for none, ::ffff:a.b.c.d for IPv4
    user_agent   String CODEC(ZSTD(1)),
    request_id   String CODEC(ZSTD(1)),
    reason       String CODEC(ZSTD(1)),
    data         String CODEC(ZSTD(3)),                      -- JSON, canonical, as in the log
    key_id       String ALIAS if(kind = 'key', aggregate_id, ''),
    INDEX i_aggregate aggregate_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX i_actor actor_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX i_request request_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX i_ip ip TYPE bloom_filter(0.01) GRANULARITY 1
) ENGINE = MergeTree
PARTITION BY (toYYYYMM(stored), intDiv(seq, 1000000000000))
ORDER BY (keyspace, tenant, seq);

-- +goose Down
DROP TABLE IF EXISTS events;
DROP TABLE IF EXISTS log_identity;
