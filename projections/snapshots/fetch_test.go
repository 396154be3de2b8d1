package snapshots

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/projections"
)

// withSum ends a snapshot with the sum of what comes before.
func withSum(b []byte) []byte {
	body := b[:len(b)-sha256.Size]
	sum := sha256.Sum256(body)
	return append(bytes.Clone(body), sum[:]...)
}

// lie makes the revoked key active.
func lie(t testing.TB, b []byte) []byte {
	out := bytes.Replace(b, []byte("\x07revoked"), []byte("\x06active"), 1)
	if bytes.Equal(out, b) {
		t.Fatal("no key is revoked in the snapshot")
	}
	return withSum(out)
}

// A fetched snapshot is used, proven, and then the node's own like any other.
func TestFetch(t *testing.T) {
	w := newWorld(t)
	b := w.export(w.keys)
	w.grow()
	n := w.node()
	s, v := n.start(sending("http://a", b))
	if v.At() != w.last || status(v, w.bad.Key) != events.StatusRevoked {
		t.Errorf("at %d, want %d", v.At(), w.last)
	}
	if err := s.Proven(); err == nil || !strings.Contains(err.Error(), "came from http://a") || !n.has(unprovenFile) {
		t.Errorf("before the proof: %v, %s", err, n.files())
	}
	if err := n.proof(s); err != nil || s.Proven() != nil {
		t.Fatal(err, s.Proven())
	}
	n.wantSaid("says what the log says")
	if got := n.files(); got != "keys-00000000000000000007.snap" {
		t.Errorf("the directory has %s", got)
	}
	w.replayed = 0
	s, v = n.start(sending("http://a", nil))
	if err := n.proof(s); err != nil || v.At() != w.last || w.replayed > 0 || strings.Contains(n.said.String(), "http://a") {
		t.Errorf("started again: %v, at %d, %d events replayed\n%s", err, v.At(), w.replayed, n.said.String())
	}
}

// Any flipped bit, any cut and anything that is not of the log is refused before it is
// used, and leaves nothing in the directory.
func TestFetchRefuses(t *testing.T) {
	w := newWorld(t)
	good := w.export(w.keys)
	n := w.node()
	refused := func(want string, src Source) {
		t.Helper()
		s := n.open(src)
		if _, ok, err := Fetch(t.Context(), s, projections.LoadKeys); ok || err != nil || n.files() != "" || s.Proven() != nil {
			t.Errorf("%s: used %v, %v; the directory has %q; %v", want, ok, err, n.files(), s.Proven())
		}
		n.wantSaid(want, "the log is read from its first event")
	}
	for range 200 {
		bad := bytes.Clone(good)
		bad[rand.IntN(len(bad))] ^= 1 << rand.IntN(8)
		refused("no snapshot from this source", sending("http://a", bad))
	}
	refused("cut short", sending("http://a", good[:rand.IntN(len(good))]))
	refused("damaged", sending("http://a", append(bytes.Clone(good), 0)))
	refused("no route to host", Source{"http://a", func(context.Context, string) (io.ReadCloser, error) { return nil, errors.New("no route to host") }})
	refused("the cable", Source{"http://a", func(context.Context, string) (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(good[:100]), iotest.ErrReader(errors.New("the cable")))), nil
	}})
	refused("not a snapshot of keys", sending("http://a", w.export(w.dir)))
	refused("this log is", sending("http://a", newWorld(t).export(newWorld(t).keys)))
	refused("holds no event", sending("http://a", w.export(projections.NewKeys())))

	// Another history of this log: the last event, or one before it, is another one.
	for _, i := range []int{len(w.all) - 1, 2} {
		other := projections.NewKeys()
		all := append([]events.Recorded{}, w.all...)
		all[i].Hash[31] ^= 1
		if i < len(all)-1 { // a key's only event, so that no later one names it
			if all[i].Rev != 1 || all[i].Key() == w.bad.Key {
				t.Fatal("not an event without successors")
			}
		}
		if err := other.Apply(all); err != nil {
			t.Fatal(err)
		}
		refused("it is of another history", sending("http://a", w.export(other)))
	}
}

// A snapshot ahead of the floor is waited for, and refused if the floor does not come.
func TestFetchAheadOfTheFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.node()
		w.last--
		s := n.open(sending("http://a", w.export(w.keys)))
		began := time.Now()
		if _, ok, err := Fetch(t.Context(), s, projections.LoadKeys); ok || err != nil || time.Since(began) != floorLimit {
			t.Errorf("used %v, %v after %v", ok, err, time.Since(began))
		}
		n.wantSaid("ends with event 7, and the newest floor is at 6")
		w.rises = w.floors + 3
		began = time.Now()
		if _, ok, err := Fetch(t.Context(), s, projections.LoadKeys); !ok || err != nil || time.Since(began) != 2*floorEvery {
			t.Errorf("used %v, %v after %v", ok, err, time.Since(began))
		}
	})
}

// slow sends n bytes every pause.
type slow struct {
	ctx   context.Context
	b     *bytes.Reader
	n     int
	pause time.Duration
}

func (s *slow) Read(p []byte) (int, error) {
	select {
	case <-time.After(s.pause):
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	}
	return s.b.Read(p[:min(len(p), s.n)])
}

// A source that hangs, before or after it has begun to send, or that sends byte by byte,
// is left after seconds, and the next is asked. One that is busy is asked again.
func TestFetchLeavesSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		good := w.export(w.keys)
		n := w.node()
		hang := Source{"http://hangs", func(ctx context.Context, _ string) (io.ReadCloser, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		drip := Source{"http://drips", func(ctx context.Context, _ string) (io.ReadCloser, error) {
			return io.NopCloser(&slow{ctx, bytes.NewReader(good), 1, time.Second}), nil
		}}
		busy := 3
		last := Source{"http://busy", func(context.Context, string) (io.ReadCloser, error) {
			if busy--; busy >= 0 {
				return nil, api.Errorf(503, codeBusy, "later")
			}
			return io.NopCloser(bytes.NewReader(good)), nil
		}}
		began := time.Now()
		s := n.open(hang, drip, last)
		if _, ok, err := Fetch(t.Context(), s, projections.LoadKeys); !ok || err != nil || time.Since(began) != 2*stall+3*busyPause {
			t.Errorf("used %v, %v after %v", ok, err, time.Since(began))
		}
		n.wantSaid("from=http://hangs err=\"it sent 0 bytes in 10s", "from=http://drips err=\"it sent")

		busy = 1000
		began = time.Now()
		m := w.node()
		s = m.open(last)
		if _, ok, err := Fetch(t.Context(), s, projections.LoadKeys); ok || err != nil || time.Since(began) != busyRounds*busyPause {
			t.Errorf("used %v, %v after %v", ok, err, time.Since(began))
		}
		m.wantSaid("busy: later", "the log is read from its first event")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for _, src := range []Source{hang, drip, last} {
			if _, ok, err := Fetch(ctx, m.open(src), projections.LoadKeys); ok || !errors.Is(err, context.DeadlineExceeded) || m.files() != "" {
				t.Errorf("%s while the node stops: %v, %v, %s", src.URL, ok, err, m.files())
			}
		}
	})
}
