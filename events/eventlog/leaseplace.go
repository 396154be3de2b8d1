package eventlog

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// place is the subject that holds the record of one run of a node. A verifier's
// account maps what follows the node's name to one of 64 (node.conf.tmpl), so that
// nobody can fill KT_LEASE with records of one node. A run therefore takes a place
// that has no record before it asks for its first lease: it never hides the record of
// another run, which may still answer.
type place struct {
	subject string
	try     int
	at      time.Time // when the record was last known to be there, or long ago if it may be forgotten
}

// placeHeld is for how long after its last record a run has its place for certain.
const placeHeld = events.KeepLease - events.KeepLease/10

// held reports whether the record is there for certain, by the clock that says more:
// the steady one stands still while the machine is suspended.
func (p *place) held() bool {
	now := time.Now()
	return max(now.Sub(p.at), now.Round(0).Sub(p.at.Round(0))) < placeHeld
}

// mostPlaces is how many places are tried: of 64, each is met with near certainty.
const mostPlaces = 512

var errNoPlace = errors.New("64 runs of this node have a record already: wait an hour, or give the node another name")

func leaseSubject(lease *events.NodeLease, try int) string {
	s := streams.LeasePrefix + string(lease.Node) + "." + lease.Instance.String()
	if try > 0 {
		s += "-" + strconv.Itoa(try)
	}
	return s
}

// place returns the subject of the run's record. The first time, and after a pause
// in which the record may have been forgotten, it takes a place with a record that
// grants nothing.
func (l *Leases) place(ctx context.Context, lease *events.NodeLease) (string, error) {
	l.mu.Lock()
	p, ok := l.places[lease.Instance]
	l.mu.Unlock()
	if ok && p.held() {
		return p.subject, nil
	}
	if known, on := l.known(); known.Seq == 0 {
		if f, err := l.readFloor(ctx, on); err != nil {
			return "", err
		} else if f.Seq == 0 && lease.State == events.LeaseLive {
			return "", events.ErrNoFloor
		}
	}
	first := *lease
	first.Floor = 0
	m, err := leaseMsg(&first)
	if err != nil {
		return "", err
	}
	m.Header.Set(hdrStream, leaseStream)
	m.Header.Set(hdrExpect, "0")
	for end := p.try + mostPlaces; p.try < end; p.try++ {
		m.Subject = leaseSubject(lease, p.try)
		taken, err := l.take(ctx, m)
		if err != nil {
			return "", err
		}
		if taken {
			p.subject, p.at = m.Subject, time.Now()
			l.mu.Lock()
			l.places[lease.Instance] = p
			l.mu.Unlock()
			return p.subject, nil
		}
	}
	return "", fmt.Errorf("%w: %w", events.ErrUnavailable, errNoPlace)
}

// take stores m where nothing is, and reports whether it did.
func (l *Leases) take(ctx context.Context, m *nats.Msg) (bool, error) {
	_, err := l.send(ctx, m)
	if api := (*apiError)(nil); errors.As(err, &api) && (api.ErrCode == codeWrongLast || api.ErrCode == codeWrongLastConstant) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%w: %w", events.ErrUnavailable, err)
	}
	return true, nil
}

// holds notes that the run's record is there.
func (l *Leases) holds(run events.InstanceID, subject string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.places[run]
	p.subject, p.at = subject, time.Now()
	l.places[run] = p
}
