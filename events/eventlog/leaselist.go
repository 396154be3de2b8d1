package eventlog

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// maxLeases is the most messages that the server tells of in one answer.
const maxLeases = 1024

// Nodes implements events.Leases. One answer of one replica holds the floor and all
// records as of one moment; that the replica is not behind, its floor shows.
func (l *Leases) Nodes(ctx context.Context, atLeast events.Seq) (n events.NodeLeases, err error) {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	for r := meets(); ; {
		if n, err = l.nodes(ctx); err == nil && n.Floor.Seq >= atLeast {
			n.Unrecorded = l.Recording() != nil
			return n, nil
		}
		if err == nil {
			err = fmt.Errorf("a replica of %s stands before floor %d", leaseStream, atLeast)
		}
		if l.nc.IsClosed() || r.wait(ctx) != nil {
			return events.NodeLeases{}, fmt.Errorf("read the leases: %w: %w", events.ErrUnavailable, err)
		}
	}
}

func (l *Leases) nodes(ctx context.Context) (n events.NodeLeases, err error) {
	last := "0" // where the message before stands; each message says it again
	linked := func(m *nats.Msg) error {
		if got := said(m, "Nats-Last-Sequence"); got != last {
			return fmt.Errorf("the answer lacks a message between %s and %s", last, got)
		}
		last = said(m, "Nats-Sequence")
		return nil
	}
	var foreign []record
	var newest events.Time
	err = l.replies(ctx, leaseStream, getRequest{MultiLast: []string{streams.LeaseFloor, streams.LeasePrefix + ">"}, Batch: maxLeases}, func(m *nats.Msg, end bool) error {
		if err := linked(m); err != nil || end {
			return err
		}
		s, err := fromReply(m, leaseStream)
		if err != nil {
			return err
		}
		newest = max(newest, s.at)
		if s.subject == streams.LeaseFloor {
			n.Floor, err = l.floorOf(&s)
			return err
		}
		node, _, _ := strings.Cut(strings.TrimPrefix(s.subject, streams.LeasePrefix), ".")
		lease, err := events.DecodeLease(s.data)
		if err != nil || string(lease.Node) != node || lease.Applied.Log != l.id {
			foreign = append(foreign, record{events.NodeID(node), s.at})
			return nil
		}
		// What a run said last counts, should it have two places.
		n.Leases = slices.DeleteFunc(n.Leases, func(l events.StoredLease) bool { return l.Node == lease.Node && l.Instance == lease.Instance })
		n.Leases = append(n.Leases, events.StoredLease{NodeLease: lease, Seq: s.seq, Stored: s.at})
		return nil
	})
	n.Leases, n.Unreadable = current(n.Leases, foreign, newest)
	return n, err
}

// record is one that is not as Keytrail writes it.
type record struct {
	node   events.NodeID
	stored events.Time
}

// current leaves out the records that the server would have dropped before it stored
// the newest message of the list, had their node given them the TTL that leaseMsg does.
// Whoever holds a node's credential can leave that away; such a record would be waited
// for after each change, also when the credential has long been taken back.
func current(leases []events.StoredLease, foreign []record, newest events.Time) ([]events.StoredLease, []events.NodeID) {
	over := func(stored events.Time, life time.Duration) bool { return newest > stored.Add(life+events.KeepLease) }
	leases = slices.DeleteFunc(leases, func(l events.StoredLease) bool { return over(l.Stored, l.Life()) })
	var nodes []events.NodeID
	for _, r := range foreign {
		if !over(r.stored, events.MaxLeaseLife) {
			nodes = append(nodes, r.node)
		}
	}
	return leases, nodes
}
