package eventlog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// A server whose disk is full answers no write, and goes on answering reads. With
// several replicas that is a log which is down: only a majority that writes shows who
// leads. A log on one server has no other leader, so its server's own word of where
// KT_LIFE ends, asked for after Renew was called, proves as much as a write: every
// acknowledged command is in it. So there a lease is granted without a record, and
// verifiers answer on a full disk.

// unrecordedTry is how long a renewal waits for its write once the log of leases is
// known to store nothing: far longer than a write takes, shorter than the shortest
// bound.
const unrecordedTry = 250 * time.Millisecond

// Recording returns nil, or why the last write to the log of leases was not stored.
// No floor can be raised then, so that no command can be acknowledged. The error is
// of class events.ErrFull or events.ErrNotStoring.
func (l *Leases) Recording() error { return l.fault(leaseStream) }

// alone returns what the lifecycle stream's server says of it now; ok is false
// unless that is the log's only server.
func (l *Leases) alone(ctx context.Context) (si *jetstream.StreamInfo, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, l.patience)
	defer cancel()
	si, err := l.info(ctx, lifeStream)
	if err != nil {
		return nil, false
	}
	id, err := streams.Identity(&si.Config)
	one := si.Cluster == nil || si.Cluster.Name == "" && len(si.Cluster.Replicas) == 0
	return si, err == nil && id == l.id && si.Config.Replicas == 1 && one
}

// unanswered counts a write to the log of leases that nobody answered for a whole
// patience. Once there are enough of them over one connection, and the log's only
// server answers reads, it returns the error of a log that stores nothing.
func (l *Leases) unanswered(ctx context.Context) error {
	l.mu.Lock()
	if conns := l.nc.Stats().Reconnects; conns != l.conns {
		l.silent, l.conns = 0, conns
	}
	l.silent++
	n := l.silent
	l.mu.Unlock()
	if n < unconfirmed {
		return nil
	}
	if _, ok := l.alone(ctx); !ok {
		return nil
	}
	err := notStoring(leaseStream, n)
	l.note(leaseStream, err)
	return fmt.Errorf("%w: %w", events.ErrUnknownOutcome, err)
}

// answered begins the count anew.
func (l *Leases) answered() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.silent = 0
}

// unrecorded grants a lease without a record, after err of its write. The run's last
// record must be there: others see by it that the run may answer.
func (l *Leases) unrecorded(ctx context.Context, lease *events.NodeLease, err error) (events.LeaseGrant, error) {
	l.mu.Lock()
	p, ok := l.places[lease.Instance]
	l.mu.Unlock()
	switch {
	case l.Recording() == nil:
		return events.LeaseGrant{}, err
	case lease.First == 0 || !ok || !p.held():
		return events.LeaseGrant{}, errors.Join(err, fmt.Errorf("only a run with a lease on record, not older than %s, is granted one without a record", placeHeld))
	}
	si, ok := l.alone(ctx)
	if !ok || l.Recording() == nil { // over another connection it may be another server
		return events.LeaseGrant{}, err
	}
	return events.LeaseGrant{Floor: events.Floor{Head: events.Head{Log: l.id, Size: events.Seq(si.State.LastSeq)}}}, nil
}
