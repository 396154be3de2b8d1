-- Rollups of the uses, filled by the writer from `uses` in its own time; no
-- materialized views, which lose what is in flight when the server is killed.
-- Each row says in max_seq how far it goes, so a table's offset is inside its own
-- rows. Every use counts in every rollup: sum(n) equals the raw count up to the
-- offset. They outlive the raw rows when old months of `uses` are dropped.
-- `month` is the month of `stored`, not of the hour or day: see 00001.

-- +goose NO TRANSACTION
-- +goose Up

-- Per tenant, hour and reason.
CREATE TABLE IF NOT EXISTS use_hour (
    keyspace LowCardinality(String),
    tenant   LowCardinality(String),
    hour     DateTime64(0, 'UTC'),
    reason   LowCardinality(String),
    month    UInt32,
    n        SimpleAggregateFunction(sum, UInt64),
    cost     SimpleAggregateFunction(sum, UInt64),
    max_seq  SimpleAggregateFunction(max, UInt64)
) ENGINE = AggregatingMergeTree
PARTITION BY month
ORDER BY (keyspace, tenant, hour, reason, month);

-- Per key, day and reason.
CREATE TABLE IF NOT EXISTS use_day_key (
    keyspace LowCardinality(String),
    tenant   LowCardinality(String),
    key_id   String,
    day      Date32,
    reason   LowCardinality(String),
    month    UInt32,
    n        SimpleAggregateFunction(sum, UInt64),
    cost     SimpleAggregateFunction(sum, UInt64),
    max_seq  SimpleAggregateFunction(max, UInt64)
) ENGINE = AggregatingMergeTree
PARTITION BY month
ORDER BY (keyspace, tenant, key_id, day, reason, month);

-- Per key, for its whole life: what lists of keys show. One row a key, no
-- partitions, never dropped. Used means allowed; a refused attempt is `denied`.
CREATE TABLE IF NOT EXISTS use_key (
    key_id      String,
    keyspace    LowCardinality(String),
    tenant      LowCardinality(String),
    n           SimpleAggregateFunction(sum, UInt64),
    denied      SimpleAggregateFunction(sum, UInt64),
    first_used  SimpleAggregateFunction(min, Nullable(DateTime64(3, 'UTC'))),
    last        SimpleAggregateFunction(max, Tuple(used DateTime64(3, 'UTC'), ip IPv6)),
    last_denied SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
    max_seq     SimpleAggregateFunction(max, UInt64)
) ENGINE = AggregatingMergeTree
ORDER BY (key_id, keyspace, tenant);

-- +goose Down
DROP TABLE IF EXISTS use_key;
DROP TABLE IF EXISTS use_day_key;
DROP TABLE IF EXISTS use_hour;
