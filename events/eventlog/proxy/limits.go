package proxy

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"time"

	"golang.org/x/time/rate"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// Limits is what one node may ask of one server, per second, over all of its
// connections. Twice as much may come at once. A zero is replaced by the default.
type Limits struct {
	Uses  int64 // batches of uses; default 20,000: a node that waits for each answer sends fewer
	Bytes int64 // of all that it sends; default 64 MiB
}

// The rest is far above what a node does, whatever its load: it renews its lease
// every tenth of its life, and asks about the stream when something is wrong.
const (
	leasesPerSecond = 100  // records of leases
	floorsPerSecond = 100  // reads of the floor
	readsPerSecond  = 1000 // requests for up to 256 events
	tokensPerSecond = 2000 // asks for tokens of limits: one at a time, a millisecond apart
	asksPerSecond   = 20   // requests about the stream
	subsPerSecond   = 3000 // subscriptions and their ends: a reader has one of each for each request
	otherPerSecond  = 500  // answers, and anything else
)

// The limits, by the names that metrics and log lines use.
const (
	limitLeases = "leases"
	limitFloors = "floors"
	limitUses   = "uses"
	limitReads  = "reads"
	limitTokens = "tokens"
	limitAsks   = "requests"
	limitSubs   = "subscriptions"
	limitOther  = "other"
	limitBytes  = "bytes"
	limitShare  = "share"
	limitForm   = "form"
)

// node is what the proxy knows of one node's account. Its limiters are shared by the
// connections of the account.
type node struct {
	name     string
	limiters map[string]*rate.Limiter
	windows  map[string]*window // of the limits that count writes
}

func newNode(name string, l Limits) *node {
	n := &node{name: name, limiters: map[string]*rate.Limiter{},
		windows: map[string]*window{limitLeases: newWindow(streams.Lease, leaseSubjects), limitUses: newWindow(streams.Use, useSubjects)}}
	for limit, perSecond := range map[string]float64{
		limitLeases: leasesPerSecond, limitFloors: floorsPerSecond, limitReads: readsPerSecond, limitTokens: tokensPerSecond, limitAsks: asksPerSecond, limitSubs: subsPerSecond, limitOther: otherPerSecond,
		limitUses: float64(cmp.Or(l.Uses, 20_000)), limitBytes: float64(max(cmp.Or(l.Bytes, 64<<20), streams.MaxPayload+maxLine)),
	} {
		n.limiters[limit] = rate.NewLimiter(rate.Limit(perSecond), max(int(2*perSecond), 1))
	}
	return n
}

var (
	leaseSubjects = []byte(streams.LeasePrefix)
	floorSubject  = []byte("kt.api.DIRECT.GET." + streams.Lease + ".")
	useSubjects   = []byte(events.UsePrefix)
	readSubjects  = []byte("kt.api.DIRECT.")
	tokenSubjects = []byte(streams.LimitPrefix)
	askSubjects   = []byte("kt.api.")
)

// limitOf names the limit that counts an operation.
func limitOf(o *op) string {
	switch {
	case o.verb == "SUB" || o.verb == "UNSUB":
		return limitSubs
	case bytes.HasPrefix(o.subject, leaseSubjects):
		return limitLeases
	case bytes.HasPrefix(o.subject, floorSubject):
		return limitFloors
	case bytes.HasPrefix(o.subject, useSubjects):
		return limitUses
	case bytes.HasPrefix(o.subject, readSubjects):
		return limitReads
	case bytes.HasPrefix(o.subject, tokenSubjects):
		return limitTokens
	case bytes.HasPrefix(o.subject, askSubjects):
		return limitAsks
	}
	return limitOther
}

// wait waits until the node may ask for the operation, and returns which limits made
// it wait. Nothing is thrown away: who asks faster is read more slowly. It calls before
// when it begins to wait.
func (n *node) wait(ctx context.Context, o *op, before func() error) (held []string, err error) {
	for _, w := range []struct {
		limit string
		n     int
	}{{limitOf(o), 1}, {limitBytes, len(o.args) + len(o.subject) + len(o.reply) + len(o.payload)}} {
		r := n.limiters[w.limit].ReserveN(time.Now(), w.n)
		d := r.Delay()
		if d == 0 {
			continue
		}
		held = append(held, w.limit)
		if err := errors.Join(before(), pause(ctx, d)); err != nil {
			return held, err
		}
	}
	return held, nil
}
