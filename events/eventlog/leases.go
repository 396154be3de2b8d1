package eventlog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
	"github.com/keytrail/keytrail/internal/flight"
)

const (
	hdrExpectOf = "Nats-Expected-Last-Subject-Sequence-Subject"
	hdrTTL      = "Nats-TTL"
)

// Leases is the client of the log of leases.
type Leases struct {
	*transport
	raises flight.Group[struct{}]
	turn   chan struct{} // held by the one conditional write that is in flight: two of one process would conflict

	mu    sync.Mutex
	on    uint64       // the connection, by the count of reconnects, that floor was seen on; guarded by mu
	floor events.Floor // the newest that was seen; a read shows committed messages only; guarded by mu
	want  events.Head  // the highest that Raise was asked for; guarded by mu

	places map[events.InstanceID]place // of the runs that renew here; guarded by mu

	silent int    // writes in a row without an answer, over one connection; guarded by mu
	conns  uint64 // the connection's reconnects then; guarded by mu
}

func newLeases(t *transport) *Leases {
	return &Leases{transport: t, turn: make(chan struct{}, 1), places: map[events.InstanceID]place{}}
}

// saw remembers a floor that was seen on the connection, if it is newer.
func (l *Leases) saw(f events.Floor, on uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget()
	if on == l.on && f.Seq > l.floor.Seq {
		l.floor = f
		l.wrote(f.Release)
	}
}

// proved remembers the floor that a write on the connection has shown to be the newest,
// also if it stands before one that was seen: the stream was made anew.
func (l *Leases) proved(f events.Floor, on uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget()
	if on == l.on {
		l.floor = f
		l.wrote(f.Release)
	}
}

// known returns the newest floor that was seen on this connection, and which it is.
func (l *Leases) known() (events.Floor, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget()
	return l.floor, l.on
}

// forget forgets the floor of an earlier connection: what answers now may hold
// another history, with another floor at the same sequence. A reconnect is counted
// before the new connection delivers anything. l.mu is held.
func (l *Leases) forget() {
	if n := l.nc.Stats().Reconnects; n != l.on {
		l.on, l.floor = n, events.Floor{}
	}
}

// ask notes that a floor of at least h is wanted, and reports whether it is there.
func (l *Leases) ask(h events.Head) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget()
	covered, err := l.floor.Covers(h)
	if !covered && err == nil && (h.Size > l.want.Size || h.Size == l.want.Size && l.want.Root.IsZero()) {
		l.want = h
	}
	return covered, err
}

func (l *Leases) wanted() events.Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.want
}

// mine refuses a head of another log.
func (l *Leases) mine(what string, h *events.Head) error {
	if h.Log != l.id {
		return fmt.Errorf("%s is of log %s, this is log %s: restore one whole backup, or connect to the right server", what, h.Log, l.id)
	}
	return nil
}

// Raise implements events.Leases. The write expects the floor that it replaces, on
// the floor's own subject, so of two writers one begins again and none lowers it.
func (l *Leases) Raise(ctx context.Context, h events.Head) error {
	if err := l.mine("the head", &h); err != nil {
		return fmt.Errorf("raise the floor: %w", err)
	}
	if covered, err := l.ask(h); covered {
		return nil
	} else if err != nil {
		return fmt.Errorf("raise the floor: %w", err)
	}
	ctx, cancel := l.bound(ctx)
	defer cancel()
	_, err := l.raises.Do(ctx, func(ctx context.Context) (struct{}, error) {
		ctx, cancel := l.bound(ctx)
		defer cancel()
		return struct{}{}, l.raise(ctx)
	})
	switch {
	case err == nil:
		_, err = l.ask(h) // what it was raised to may be of another history
	case ctx.Err() != nil && errors.Is(err, ctx.Err()): // the run goes on without this caller
		err = fmt.Errorf("%w: %w", events.ErrUnknownOutcome, err)
	}
	if silent := l.Recording(); silent != nil && errors.Is(err, events.ErrUnknownOutcome) {
		err = fmt.Errorf("%w: %w", silent, err)
	}
	if err != nil {
		return fmt.Errorf("raise the floor to %d: %w", h.Size, err)
	}
	return nil
}

// raise raises the floor to what all callers want by now.
func (l *Leases) raise(ctx context.Context) error {
	want := l.wanted()
	var other error
	_, err := l.replace(ctx, func(floor events.Floor) (events.Floor, bool) {
		covered, err := floor.Covers(want)
		other = err
		floor.Head = want
		return floor, !covered && err == nil
	})
	if err == nil {
		err = other
	}
	return err
}

// replace writes the floor that next makes of the newest one, and returns it; ok is false
// when there is nothing to write.
func (l *Leases) replace(ctx context.Context, next func(events.Floor) (_ events.Floor, ok bool)) (raised events.Floor, err error) {
	m := nats.NewMsg(streams.LeaseFloor)
	var invalid error
	_, err = l.conditional(ctx, m, func(floor *events.Floor) bool {
		m.Header.Set(hdrExpect, strconv.FormatUint(uint64(floor.Seq), 10))
		var ok bool
		if raised, ok = next(*floor); ok {
			m.Data, invalid = events.EncodeFloor(&raised)
		}
		return ok && invalid == nil
	}, func(seq events.Seq, on uint64) {
		raised.Seq = seq
		l.proved(raised, on)
	})
	return raised, cmp.Or(err, invalid)
}

// RaiseRelease implements events.Leases.
func (l *Leases) RaiseRelease(ctx context.Context, r events.Release) error {
	if err := r.Validate(); err != nil {
		return fmt.Errorf("raise the release: %w", err)
	}
	ctx, cancel := l.bound(ctx)
	defer cancel()
	var none bool
	_, err := l.replace(ctx, func(floor events.Floor) (events.Floor, bool) {
		none = floor.Seq == 0
		higher := floor.Release.Before(r)
		floor.Release = r
		return floor, higher && !none
	})
	if err == nil && none {
		err = events.ErrNoFloor
	}
	if err != nil {
		return fmt.Errorf("raise the release to %s: %w", r, err)
	}
	return nil
}

// Renew implements events.Leases. The message carries no id: the answer to a
// duplicate would speak of an earlier moment.
func (l *Leases) Renew(ctx context.Context, lease events.NodeLease) (g events.LeaseGrant, err error) {
	if err := l.mine("the applied head", &lease.Applied); err != nil {
		return g, fmt.Errorf("renew the lease of %s: %w", lease.Node, err)
	}
	m, err := leaseMsg(&lease)
	if err != nil {
		return g, fmt.Errorf("renew: %w", err)
	}
	ctx, cancel := l.bound(ctx)
	defer cancel()
	if m.Subject, err = l.place(ctx, &lease); err != nil {
		return g, fmt.Errorf("renew the lease of %s: %w", lease.Node, err)
	}
	write := ctx
	if l.Recording() != nil {
		var cancel context.CancelFunc
		write, cancel = context.WithTimeout(ctx, unrecordedTry)
		defer cancel()
	}
	m.Header.Set(hdrExpectOf, streams.LeaseFloor)
	var proven uint64 // the connection
	g.Floor, err = l.conditional(write, m, func(floor *events.Floor) bool {
		lease.Floor = floor.Seq
		m.Data, _ = events.EncodeLease(&lease) // leaseMsg has shown that it can be
		m.Header.Set(hdrExpect, strconv.FormatUint(uint64(floor.Seq), 10))
		return floor.Seq > 0
	}, func(seq events.Seq, on uint64) { g.Seq, proven = seq, on })
	if err == nil && g.Seq == 0 {
		err = events.ErrNoFloor
	}
	if errors.Is(err, events.ErrUnavailable) || errors.Is(err, events.ErrUnknownOutcome) {
		g, err = l.unrecorded(ctx, &lease, err)
	}
	if errors.Is(err, events.ErrUnknownOutcome) { // there is no grant either way
		err = fmt.Errorf("%w: %w", events.ErrUnavailable, err)
	}
	if err != nil {
		return events.LeaseGrant{}, fmt.Errorf("renew the lease of %s: %w", lease.Node, err)
	}
	if g.Seq > 0 {
		l.holds(lease.Instance, m.Subject)
		l.proved(g.Floor, proven)
	}
	return g, nil
}

// Release implements events.Leases.
func (l *Leases) Release(ctx context.Context, lease events.NodeLease) error {
	lease.State = events.LeaseEnded
	m, err := leaseMsg(&lease)
	if err != nil {
		return fmt.Errorf("release: %w", err)
	}
	ctx, cancel := l.bound(ctx)
	defer cancel()
	if m.Subject, err = l.place(ctx, &lease); err != nil {
		return fmt.Errorf("release the lease of %s: %w", lease.Node, err)
	}
	m.Header.Set(hdrStream, leaseStream)
	if _, err := l.send(ctx, m); err != nil {
		return fmt.Errorf("release the lease of %s: %w: %w", lease.Node, events.ErrUnavailable, err)
	}
	return nil
}

func leaseMsg(lease *events.NodeLease) (*nats.Msg, error) {
	body, err := events.EncodeLease(lease)
	if err != nil {
		return nil, err
	}
	m := nats.NewMsg(leaseSubject(lease, 0))
	m.Data = body
	m.Header.Set(hdrTTL, (lease.Life() + events.KeepLease).Round(time.Second).String())
	return m, nil
}

// conditional publishes m, which expects the newest floor, and again with a newer
// one until it is stored or ctx ends. prepare sets the expectation; false = there
// is nothing to write. It returns the floor that m was stored on.
//
// A conflict also comes while another write that expects the floor, or the floor
// itself, is in flight: then the same floor may do at the next try. The pause
// between tries is random, so that nodes do not meet again.
//
// The floor and the answer come over one connection, else it is tried again: the
// same sequence may be that of another floor elsewhere.
func (l *Leases) conditional(ctx context.Context, m *nats.Msg, prepare func(*events.Floor) bool, stored func(seq events.Seq, on uint64)) (floor events.Floor, err error) {
	m.Header.Set(hdrStream, leaseStream)
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return floor, fmt.Errorf("%w: %w", events.ErrUnavailable, ctx.Err())
	}
	class := events.ErrUnavailable // what an end of ctx means
	r := meets()
	for try := 0; ; try++ {
		var on uint64
		if floor, on = l.known(); floor.Seq == 0 || try > 0 {
			if floor, err = l.readFloor(ctx, on); err != nil {
				return floor, err
			}
		}
		if !prepare(&floor) {
			return floor, nil
		}
		ack, err := l.publish(ctx, []*nats.Msg{m})
		a, err := answerOf(&ack, err)
		if a != silent {
			l.answered()
		}
		switch {
		case a == accepted && l.nc.Stats().Reconnects != on:
			err = errors.New("the connection was lost meanwhile")
		case a == accepted:
			stored(events.Seq(ack.Seq), on)
			l.note(leaseStream, nil)
			return floor, nil
		case a == noRoom:
			err = fullError(leaseStream, ack.Error)
			l.note(leaseStream, err)
			return floor, fmt.Errorf("%w: %w", events.ErrUnavailable, err)
		case a == silent:
			class = events.ErrUnknownOutcome
			if ctx.Err() == nil {
				none := l.unanswered(ctx)
				if none != nil && m.Subject != streams.LeaseFloor { // a floor is worth the whole wait
					return floor, none
				}
			}
		case a == wrongLast, a == unserved:
		default:
			return floor, err
		}
		if l.nc.IsClosed() || r.wait(ctx) != nil {
			if class == events.ErrUnavailable {
				return floor, l.unavailable(leaseStream, err)
			}
			return floor, fmt.Errorf("%w: %w", class, err)
		}
	}
}

// meets is the pause between two tries of writes that conflict: short, since each
// waits for one write in flight only.
func meets() retry { return retry{first: 2 * time.Millisecond, most: 64 * time.Millisecond} }
