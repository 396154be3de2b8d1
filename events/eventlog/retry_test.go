package eventlog

import (
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/logtest"
)

// TestRetriesSpread: callers that failed together do not come back together, the
// pauses grow to a bound, and the end of a context ends one.
func TestRetriesSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const callers, tries = 50, 8
		came := map[time.Duration]int{} // after the last of all tries
		for range callers {
			began := time.Now()
			var r retry
			want := retryFirst
			for range tries {
				before := time.Now()
				if err := r.wait(t.Context()); err != nil {
					t.Fatal(err)
				}
				if d := time.Since(before); d < want/4 || d > want {
					t.Errorf("a pause of %s, want %s to %s", d, want/4, want)
				}
				want = min(2*want, retryMost)
			}
			came[time.Since(began)]++
		}
		if len(came) < callers/2 {
			t.Errorf("%d callers came back at %d moments", callers, len(came))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var r retry
		if err := r.wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// TestBulkReadsAreSmall: the server holds the stream's lock while it answers one
// request of a bulk read, so each asks for a few hundred messages, and several are on
// their way at once.
func TestBulkReadsAreSmall(t *testing.T) {
	s := testServer(t, server.Config{})
	initLog(t, s)
	l := openLog(t, conn(t, s.Connect), Options{})
	fill(t, l, 3*bulkMessages)
	var asked, most atomic.Int64
	observer := conn(t, s.ConnectAdmin)
	if _, err := observer.Subscribe("$JS.API.DIRECT.GET."+lifeStream, func(m *nats.Msg) {
		var r struct {
			Batch int64 `json:"batch"`
		}
		if json.Unmarshal(m.Data, &r) == nil {
			asked.Add(1)
			most.Store(max(most.Load(), r.Batch))
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := observer.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := len(logtest.ReadAll(t, openLog(t, conn(t, s.Connect), Options{}))); got != 3*bulkMessages {
		t.Fatalf("read %d events", got)
	}
	until(t, "the requests are seen", func() bool { return asked.Load() >= 3 })
	if n := most.Load(); n > 256 {
		t.Errorf("one request asks for %d messages", n)
	}
}
