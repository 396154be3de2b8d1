package eventlog

import (
	"context"
	"fmt"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// Floor returns the newest floor that a read shows, the zero one if there is none. It may
// be behind the newest, and is never ahead of what control has raised.
// Errors: events.ErrUnavailable.
func (l *Leases) Floor(ctx context.Context) (events.Floor, error) {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	_, on := l.known()
	return l.readFloor(ctx, on)
}

// readFloor reads the newest floor, on the connection or a later one; none is the zero
// floor. Whether it is the newest, only a write that expects it can tell.
func (l *Leases) readFloor(ctx context.Context, on uint64) (f events.Floor, err error) {
	s, err := l.lastOf(ctx, leaseStream, streams.LeaseFloor)
	if err != nil || s == nil {
		return f, err
	}
	f, err = l.floorOf(s)
	if err == nil {
		l.saw(f, on)
	}
	return f, err
}

func (l *Leases) floorOf(s *stored) (f events.Floor, err error) {
	if f, err = events.DecodeFloor(s.data); err != nil {
		return f, fmt.Errorf("the floor of the leases: %w: something other than Keytrail wrote to %s, or its store is damaged", err, leaseStream)
	}
	f.Seq = s.seq
	return f, l.mine("the floor of the leases", &f.Head)
}
