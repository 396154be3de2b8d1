package eventlog

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// A server that is cut off from the others keeps its clients' connections, and
// serves nothing through them. A process that knows other servers moves to the next
// one when its requests have failed for silentAfter and up to as long again as
// silentSpread, drawn at random so that not all move at once; then, while nothing
// helps, after twice as long each time up to silentMost.
const (
	silentAfter  = 3 * time.Second
	silentSpread = time.Second
	silentMost   = 24 * time.Second
	// shortest is the least time without an answer that says something about a
	// server: a caller may have less patience.
	shortest = 250 * time.Millisecond
)

// health is what the requests of a transport say about the server it is attached to.
type health struct {
	mu         sync.Mutex    // guards all below
	since      time.Time     // when the first of the failed requests in a row was sent; zero = none has failed
	last       time.Time     // when the last of them failed
	reconnects uint64        // of the connection, at since
	limit      time.Duration // how long they may fail
	moved      time.Time     // when the connection was last made to move
	moves      int           // without an answer since
}

// trust notes an answer that only a server in touch with the log's majority gives.
func (t *transport) trust() {
	h := &t.health
	h.mu.Lock()
	defer h.mu.Unlock()
	h.since, h.moves = time.Time{}, 0
}

// doubt notes that a request sent at began was not served, for err, and moves to the
// next server when that has gone on for too long.
func (t *transport) doubt(began time.Time, err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) && time.Since(began) < shortest {
		return // the caller went away
	}
	if !t.nc.IsConnected() || len(t.nc.Servers()) < 2 || !t.health.move(began, t.nc.Stats().Reconnects) {
		return
	}
	t.log.LogAttrs(context.Background(), slog.LevelWarn, "the log server serves no requests, and seems to be cut off from the others: another is tried",
		slog.String("server", t.nc.ConnectedServerName()), slog.Any("err", err))
	if err := t.nc.ForceReconnect(); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		t.log.LogAttrs(context.Background(), slog.LevelWarn, "log connection", slog.Any("err", err))
	}
}

// move notes a failed request, and reports whether it is time to move.
func (h *health) move(began time.Time, reconnects uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if began.Before(h.moved) {
		began = h.moved
	}
	if h.since.IsZero() || h.reconnects != reconnects || began.Sub(h.last) > silentAfter {
		h.since, h.reconnects = began, reconnects
		h.limit = min(silentAfter<<min(h.moves, 8), silentMost) + rand.N(silentSpread)
	}
	h.last = now
	if now.Sub(h.since) < h.limit {
		return false
	}
	h.since, h.moved = time.Time{}, now
	h.moves++
	return true
}
