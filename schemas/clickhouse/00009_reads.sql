-- The trail holds two logs: the lifecycle log, and the log of who read the record.
-- Each has sequences of its own, so (stream, seq) is unique, seq alone is not. The
-- stream is in the partition key, so that max(seq) of one stream is a matter of the
-- parts' metadata, and in the sorting key behind the time, so that a tenant's page,
-- newest first, is one short read. Neither key of a table can be changed: the table
-- is made anew, and the writer fills it again from the logs.

-- +goose NO TRANSACTION
-- +goose Up

DROP TABLE IF EXISTS events;

CREATE TABLE events (
    stream       LowCardinality(String),                     -- lifecycle or reads
    seq          UInt64 CODEC(Delta, ZSTD(1)),               -- in that log
    stored       DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)), -- by the log's clock
    time         DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)), -- by the writer's clock
    id           String CODEC(ZSTD(1)),                      -- ULID
    type         LowCardinality(String),                     -- key.created
    keyspace     LowCardinality(String),
    tenant       LowCardinality(String),                     -- '-' for keyspaces and readers
    kind         LowCardinality(String),                     -- key, role, keyspace, tenant, reader
    aggregate_id String CODEC(ZSTD(1)),                      -- key_01J..., or the id of what kind says
    rev          UInt64 CODEC(ZSTD(1)),                      -- 1..n within the aggregate
    prev         FixedString(32) CODEC(NONE),                -- SHA-256 of the aggregate's event before
    hash         FixedString(32) CODEC(NONE),                -- SHA-256 of this event
    source       LowCardinality(String),
    command      String CODEC(ZSTD(1)),                      -- idempotency, '' for none
    actor_kind   LowCardinality(String),
    actor_id     String CODEC(ZSTD(1)),
    ip           IPv6 CODEC(ZSTD(1)),                        -- :: for none, ::ffff:a.b.c.d for IPv4
    ip_known     Bool,
    user_agent   String CODEC(ZSTD(1)),
    request_id   String CODEC(ZSTD(1)),
    reason       String CODEC(ZSTD(1)),
    data         String CODEC(ZSTD(3)),                      -- JSON, of the newest version of the type
    document     String CODEC(ZSTD(3)),                      -- as the log holds it: its SHA-256 is hash
    key_id       String ALIAS if(kind = 'key', aggregate_id, ''),
    INDEX i_aggregate aggregate_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX i_actor actor_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX i_request request_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX i_ip ip TYPE bloom_filter(0.01) GRANULARITY 1
) ENGINE = MergeTree
PARTITION BY (toYYYYMM(stored), stream, intDiv(seq, 1000000000000))
ORDER BY (keyspace, tenant, stored, stream, seq);

-- +goose Down
DROP TABLE IF EXISTS events;
