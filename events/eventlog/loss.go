package eventlog

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
)

// leaseHolds is how recently a majority must have answered a leader for its
// answers to count. It is below the least election timeout (4 s), so that no other
// leader can have been elected meanwhile.
const leaseHolds = 3 * time.Second

// leads reports whether a majority has answered the leader recently. A leader
// cut off from the others goes on answering reads for up to 10 s.
func leads(c *jetstream.ClusterInfo) bool {
	switch {
	case c == nil:
		return true
	case c.Leader == "":
		return false
	case len(c.Replicas) == 0:
		return true
	}
	alive := 1
	for _, r := range c.Replicas {
		if !r.Offline && r.Active < leaseHolds {
			alive++
		}
	}
	return alive > (len(c.Replicas)+1)/2
}

// confirmed asks about a stream until a leader answers that leads.
func (t *transport) confirmed(ctx context.Context, stream string) (*jetstream.StreamInfo, error) {
	for r := (retry{}); ; {
		si, err := t.info(ctx, stream)
		if err != nil {
			return nil, err
		}
		if leads(si.Cluster) {
			return si, nil
		}
		if r.wait(ctx) != nil {
			return nil, fmt.Errorf("stream %s: %w: %w", stream, events.ErrUnavailable, errMinority)
		}
	}
}

// lossStands is how long a loss must be seen before it is believed: longer than the
// election of a new leader (4 to 7 s).
const lossStands = 8 * time.Second

// lost reports whether a stream has lost what shows looks for. One answer proves
// no loss: a new leader answers before it has applied all that the one before it
// acknowledged, and a replica may be ahead of it. So the leader is asked again and
// again: the first answer without the loss ends it, and only one leader that leads
// and shows it for lossStands is believed. A stream without replicas has no other
// leader, and is asked twice. Error: events.ErrUnavailable when no leader answers
// for long enough; then nothing is proven.
func (t *transport) lost(ctx context.Context, stream string, shows func(*jetstream.StreamInfo) bool) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*lossStands)
	defer cancel()
	var r retry
	var since time.Time
	for leader, asked := "", 0; ; asked++ {
		si, err := t.confirmed(ctx, stream)
		if err != nil {
			return false, err
		}
		if !shows(si) {
			return false, nil
		}
		alone := si.Cluster == nil || len(si.Cluster.Replicas) == 0
		if asked > 0 && alone {
			return true, nil
		}
		if !alone && (asked == 0 || si.Cluster.Leader != leader) {
			since, leader = time.Now(), si.Cluster.Leader
		}
		if !alone && time.Since(since) >= t.lossStands {
			return true, nil
		}
		if r.wait(ctx) != nil {
			return false, fmt.Errorf("stream %s: %w: it seems to have lost its end, and its leader does not confirm that", stream, events.ErrUnavailable)
		}
	}
}

// end returns the last sequence of a stream. An answer before atLeast, which would
// mean that the end of the stream is lost, is believed as lost says.
func (t *transport) end(ctx context.Context, stream string, atLeast events.Seq) (last events.Seq, err error) {
	_, err = t.lost(ctx, stream, func(si *jetstream.StreamInfo) bool {
		last = events.Seq(si.State.LastSeq)
		return last < atLeast
	})
	return last, err
}
