package server

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events/eventlog/streams"
	"github.com/keytrail/keytrail/events/input"
)

// Grow raises the limit (max_bytes) of a stream of the log to maxBytes and returns
// the limit before. nc must be the admin's. It never lowers one. free is how many
// bytes the stream's disk has left, 0 when that is not known here. On return the
// stream has the new limit, on a cluster at its leader.
func Grow(ctx context.Context, nc *nats.Conn, stream string, maxBytes, free int64) (old int64, err error) {
	if _, ok := streams.Find(stream); !ok {
		return 0, fmt.Errorf("stream %s: want one of %s", input.Echo(stream), strings.Join(streams.Names(), ", "))
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return 0, err
	}
	s, err := js.Stream(ctx, stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 0, fmt.Errorf("the server has no stream %s: it holds no Keytrail log; is this the right server?", stream)
	}
	if err != nil {
		return 0, fmt.Errorf("stream %s: %w", stream, err)
	}
	c := s.CachedInfo().Config
	if _, err := streams.Identity(&c); err != nil {
		return 0, err
	}
	if old = c.MaxBytes; maxBytes <= old {
		return old, fmt.Errorf("stream %s has a limit of %d bytes: want more than that; a limit is never lowered, because what is there is never deleted", stream, old)
	}
	if need := maxBytes - int64(s.CachedInfo().State.Bytes); free > 0 && need > free {
		return old, fmt.Errorf("stream %s: its disk has %d bytes free, and a limit of %d may take %d more: want a lower one, or make room", stream, free, maxBytes, need)
	}
	c.MaxBytes = maxBytes
	if _, err := js.UpdateStream(ctx, c); err != nil {
		if api := (*jetstream.APIError)(nil); errors.As(err, &api) && (api.ErrorCode == 10047 || api.ErrorCode == 10023) {
			return old, fmt.Errorf("stream %s: the server's quota for all streams has no room for %d bytes: raise it first (--max-store of `keytrail log`, max_file_store of a NATS server) and restart the servers one by one: %w", stream, maxBytes, err)
		}
		return old, fmt.Errorf("stream %s: %w", stream, err)
	}
	return old, nil
}
