-- Messages of the use stream that are no batch of the node under whose subject
-- they stand. The writer sets them aside, and copies on.

-- +goose NO TRANSACTION
-- +goose Up

--   quarantined the message is no such batch; note says why. Nothing is known of its
--               numbers; `data` is the message as the stream held it.
--   unended     written by the writer beside the message that begins the node's next
--               epoch: nothing says how this epoch ended. An unknown number of
--               decisions from number `first` on is lost.
ALTER TABLE use_batches MODIFY COLUMN kind Enum8('uses' = 1, 'open' = 2, 'close' = 3, 'gap' = 4, 'suppressed' = 5, 'trimmed' = 100, 'unended' = 101, 'quarantined' = 102);
ALTER TABLE use_batches ADD COLUMN IF NOT EXISTS data String CODEC(ZSTD(3));
ALTER TABLE use_batches ADD COLUMN IF NOT EXISTS digest String ALIAS if(kind = 'quarantined', lower(hex(SHA256(data))), '');

-- +goose Down
ALTER TABLE use_batches DROP COLUMN IF EXISTS digest;
ALTER TABLE use_batches DROP COLUMN IF EXISTS data;
