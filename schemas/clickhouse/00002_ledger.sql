-- The ledger of uses: every verification decision, allowed or denied.

-- +goose NO TRANSACTION
-- +goose Up

-- One row per decision, about 20 bytes on disk. Sorted so that a key's history is
-- one short read (5 ms at 100 M rows) and a tenant's is near; by address or by key
-- alone goes through a bloom filter. (seq, n) is unique: one message of the use
-- stream is one node's.
CREATE TABLE IF NOT EXISTS uses (
    seq           UInt64 CODEC(Delta, ZSTD(1)),               -- of the message in the use stream
    stored        DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)), -- by the stream's clock
    node          LowCardinality(String),
    epoch         Int64 CODEC(Delta, ZSTD(1)),                -- microseconds: when the node started
    n             UInt64 CODEC(Delta, ZSTD(1)),               -- number in the node's epoch
    time          DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)), -- of the decision, by the node's clock
    keyspace      LowCardinality(String),                     -- '' when unknown
    tenant        LowCardinality(String),                     -- '' when the key is unknown
    key_id        String CODEC(ZSTD(1)),                      -- '' when the key is unknown
    reason        LowCardinality(String),                     -- ok, or why it was denied
    scope         LowCardinality(String),
    resource_kind LowCardinality(String),
    resource_id   String CODEC(ZSTD(1)),
    ip            IPv6 CODEC(ZSTD(1)),                        -- :: for none, ::ffff:a.b.c.d for IPv4
    cost          UInt32 CODEC(ZSTD(1)),
    position      UInt64 CODEC(Delta, ZSTD(1)),               -- lifecycle seq at which it was decided
    allowed       Bool ALIAS reason = 'ok',
    INDEX i_ip ip TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX i_key key_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX i_time time TYPE minmax GRANULARITY 8
) ENGINE = MergeTree
PARTITION BY (toYYYYMM(stored), intDiv(seq, 1000000000000))
ORDER BY (keyspace, tenant, key_id, time, seq, n);

-- One row per message of the use stream, whatever it says: the index of the
-- ledger, and the proof that it has no holes. The writer inserts it last, so its
-- highest seq is how far the copy is.
--   uses    the numbers first .. first+count-1 are rows of `uses`
--   open    the epoch begins           close  the epoch ended; first-1 is its last number
--   gap     count decisions from number first on were made and lost (0: unknown, to the end)
--   trimmed written by the writer: the stream had already dropped the messages
--           first .. first+count-1 (sequences, not numbers) when it came to read them
CREATE TABLE IF NOT EXISTS use_batches (
    seq    UInt64 CODEC(Delta, ZSTD(1)),
    stored DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    node   LowCardinality(String),
    epoch  Int64 CODEC(Delta, ZSTD(1)),
    kind   Enum8('uses' = 1, 'open' = 2, 'close' = 3, 'gap' = 4, 'trimmed' = 100),
    first  UInt64 CODEC(ZSTD(1)),
    count  UInt64 CODEC(ZSTD(1)),
    note   String CODEC(ZSTD(1))
) ENGINE = MergeTree
PARTITION BY (toYYYYMM(stored), intDiv(seq, 1000000000000))
ORDER BY seq;

-- +goose Down
DROP TABLE IF EXISTS use_batches;
DROP TABLE IF EXISTS uses;
