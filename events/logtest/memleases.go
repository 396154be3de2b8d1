package logtest

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/keytrail/keytrail/events"
)

type leaseLog struct {
	last    events.Seq
	floor   events.Floor
	records map[leaseRun]events.StoredLease
}

type leaseRun struct {
	node     events.NodeID
	instance events.InstanceID
}

// Raise implements events.Leases.
func (l *MemLog) Raise(ctx context.Context, h events.Head) error {
	return l.call(ctx, OpRaise, func() error {
		if h.Log != l.id {
			return l.misused("raise: a head of log %s", h.Log)
		}
		s := &l.leases
		if covered, err := s.floor.Covers(h); covered || err != nil {
			return err
		}
		s.last++
		s.floor.Head, s.floor.Seq = h, s.last
		return nil
	})
}

// RaiseRelease implements events.Leases.
func (l *MemLog) RaiseRelease(ctx context.Context, r events.Release) error {
	return l.call(ctx, OpRaise, func() error {
		s := &l.leases
		if err := r.Validate(); err != nil {
			return l.misused("raise: %w", err)
		}
		if s.floor.Seq == 0 {
			return fmt.Errorf("raise: %w", events.ErrNoFloor)
		}
		if s.floor.Release.Before(r) {
			s.last++
			s.floor.Release, s.floor.Seq = r, s.last
		}
		return nil
	})
}

// Appoint implements events.Appointments.
func (l *MemLog) Appoint(ctx context.Context, was, next events.InstanceID) (f events.Floor, err error) {
	err = l.call(ctx, OpRaise, func() error {
		s := &l.leases
		switch {
		case s.floor.Seq == 0:
			return fmt.Errorf("appoint: %w", events.ErrNoFloor)
		case s.floor.Allocator != next && s.floor.Allocator != was:
			return &events.StateError{Class: events.ErrConflict, Reason: fmt.Sprintf("%s is the allocator of limits", s.floor.Allocator)}
		case s.floor.Allocator != next:
			s.last++
			s.floor.Allocator, s.floor.Seq = next, s.last
		}
		f = s.floor
		return nil
	})
	return f, err
}

// Readers implements events.Log.
func (l *MemLog) Readers() events.Release {
	l.mu.Lock()
	defer l.mu.Unlock()
	return cmp.Or(l.leases.floor.Release, events.FirstRelease)
}

// Renew implements events.Leases.
func (l *MemLog) Renew(ctx context.Context, lease events.NodeLease) (g events.LeaseGrant, err error) {
	err = l.call(ctx, OpRenew, func() error {
		if l.leases.floor.Seq == 0 {
			return fmt.Errorf("renew: %w", events.ErrNoFloor)
		}
		lease.Floor = l.leases.floor.Seq
		seq, err := l.putLease(lease)
		g = events.LeaseGrant{Floor: l.leases.floor, Seq: seq}
		return err
	})
	if err != nil {
		return events.LeaseGrant{}, err
	}
	return g, nil
}

// Release implements events.Leases.
func (l *MemLog) Release(ctx context.Context, lease events.NodeLease) error {
	lease.State = events.LeaseEnded
	return l.call(ctx, OpRelease, func() error {
		_, err := l.putLease(lease)
		return err
	})
}

// putLease stores a record. l.mu is held.
func (l *MemLog) putLease(lease events.NodeLease) (events.Seq, error) {
	if err := lease.Validate(); err != nil {
		return 0, l.misused("lease: %w", err)
	}
	if lease.Applied.Log != l.id {
		return 0, l.misused("lease: it follows log %s", lease.Applied.Log)
	}
	s := &l.leases
	s.last++
	s.records[leaseRun{lease.Node, lease.Instance}] = events.StoredLease{NodeLease: lease, Seq: s.last, Stored: l.now()}
	return s.last, nil
}

// Nodes implements events.Leases.
func (l *MemLog) Nodes(ctx context.Context, atLeast events.Seq) (n events.NodeLeases, err error) {
	err = l.call(ctx, OpNodes, func() error {
		s := &l.leases
		if s.floor.Seq < atLeast {
			return fmt.Errorf("%w: no floor stands at %d", events.ErrUnavailable, atLeast)
		}
		n.Floor = s.floor
		now := l.now()
		for _, r := range s.records {
			if now < r.Stored.Add(r.Life()+events.KeepLease) {
				n.Leases = append(n.Leases, r)
			}
		}
		slices.SortFunc(n.Leases, func(a, b events.StoredLease) int { return int(a.Seq) - int(b.Seq) })
		return nil
	})
	if err != nil {
		return events.NodeLeases{}, err
	}
	return n, nil
}
