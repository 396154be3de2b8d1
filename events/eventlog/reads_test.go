package eventlog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/logtest"
)

// TestFloodOfReads: readers without end fill the small stream of who read what, and
// are refused; not one byte of the small lifecycle stream goes to them, and what is
// appended there takes as long as it takes without them.
func TestFloodOfReads(t *testing.T) {
	s := testServer(t, server.Config{})
	if _, err := server.Init(t.Context(), conn(t, s.ConnectAdmin), server.InitConfig{MaxStore: 2 << 20}); err != nil {
		t.Fatal(err)
	}
	l := openLog(t, conn(t, s.Connect), Options{})
	revoked := 0
	revoke := func() time.Duration {
		t.Helper()
		revoked++
		w := first(noted(fmt.Sprint("r", revoked)), note(revoked))
		began := time.Now()
		if _, err := l.Append(t.Context(), w); err != nil {
			t.Fatalf("an event while others read: %v", err)
		}
		return time.Since(began)
	}

	const readers = 8
	refused := make(chan error, readers)
	flood := openLog(t, conn(t, s.Connect), Options{})
	var turn sync.RWMutex // a reader writes while it holds it for reading
	stop := beside(t, func(ctx context.Context) error {
		done := make(chan struct{}, readers)
		for i := range readers {
			go func() {
				defer func() { done <- struct{}{} }()
				var c events.Chain
				told := false
				for n := 0; ctx.Err() == nil; n++ {
					next := c
					w := logtest.Stamp(&next, logtest.Event(events.ReaderAggregate(events.Actor{ID: fmt.Sprint("reader", i)}),
						&events.AuditQueried{Kind: "uses", Filter: map[string]string{"n": fmt.Sprint(n)}}))
					turn.RLock()
					seq, err := flood.Reads().Append(ctx, w)
					turn.RUnlock()
					if err == nil {
						c = next
						c.Seq = seq
					} else if !told && ctx.Err() == nil {
						told = true
						refused <- err
					}
				}
			}()
		}
		for range readers {
			<-done
		}
		return nil
	})
	for range 50 {
		revoke()
	}
	for range readers {
		err := <-refused
		if !errors.Is(err, events.ErrFull) || !strings.Contains(err.Error(), "the stream KT_READ has reached its size limit") {
			t.Errorf("a reading that does not fit: %v", err)
		}
	}
	// With and without readers in turn: what else the machine does is common to both.
	var with, without []time.Duration
	for range 50 {
		with = append(with, revoke())
		turn.Lock()
		without = append(without, revoke())
		turn.Unlock()
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	slices.Sort(with)
	slices.Sort(without)
	full, quiet := with[len(with)/2], without[len(without)/2]
	t.Logf("median of an append: %v with nobody reading, %v while %d readers are refused", quiet, full, readers)
	if full > 2*(readers+1)*quiet { // each of the readers has its part of the machine, as who appends has
		t.Errorf("an append takes %v beside readers that are refused, %v without them", full, quiet)
	}
	if last, err := l.Last(t.Context()); err != nil || last != events.Seq(revoked) {
		t.Errorf("the lifecycle log ends at %d of %d, %v", last, revoked, err)
	}
	if err := flood.Storing(); !errors.Is(err, events.ErrFull) || !strings.Contains(err.Error(), "KT_READ") {
		t.Errorf("the log is said to store all: %v", err)
	}
	logtest.CheckLog(t, l)
	logtest.CheckLog(t, l.Reads())
}
