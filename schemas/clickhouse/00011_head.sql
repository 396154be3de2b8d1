-- How far the copy of a log is, as a head: it knows its whole past by one hash, so an
-- event that the log holds no longer as it was copied is noticed wherever it stands.

-- +goose NO TRANSACTION
-- +goose Up

-- On the last row of each insert the compact range of the log's tree up to that event
-- (events/tree): the size, and the roots of the complete subtrees. '' on all others.
-- It is stored with the rows that it is over, so the highest row of a log has one.
ALTER TABLE events ADD COLUMN IF NOT EXISTS tree String CODEC(ZSTD(3)) AFTER document;

-- +goose Down
ALTER TABLE events DROP COLUMN IF EXISTS tree;
