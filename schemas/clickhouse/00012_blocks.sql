-- Uses of keys that are not known are counted by second and block of addresses too.

-- +goose NO TRANSACTION
-- +goose Up

-- The block is a network as the tables hold addresses: IPv4 inside IPv6. Its prefix
-- has 120 bits for a /24 of IPv4, 48 for a /48 of IPv6; 0 bits stand for several
-- blocks or keyspaces, which the node did not tell apart. Where the address is not
-- known block_known is false and the others are 0. `time` is of the first of the
-- decisions and `until` of the last.
ALTER TABLE use_suppressed ADD COLUMN IF NOT EXISTS until DateTime64(3, 'UTC') DEFAULT time CODEC(Delta, ZSTD(1)) AFTER time;
ALTER TABLE use_suppressed ADD COLUMN IF NOT EXISTS block IPv6 CODEC(ZSTD(1)) AFTER until;
ALTER TABLE use_suppressed ADD COLUMN IF NOT EXISTS block_bits UInt8 AFTER block;
ALTER TABLE use_suppressed ADD COLUMN IF NOT EXISTS block_known Bool AFTER block_bits;

-- +goose Down
ALTER TABLE use_suppressed DROP COLUMN IF EXISTS block_known;
ALTER TABLE use_suppressed DROP COLUMN IF EXISTS block_bits;
ALTER TABLE use_suppressed DROP COLUMN IF EXISTS block;
ALTER TABLE use_suppressed DROP COLUMN IF EXISTS until;
