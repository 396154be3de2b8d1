package eventlog

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// timers: of many batches and settings from one mark, on three servers, one batch is
// stored, and no setting beside the mark once it has moved.
func (c *cluster) timers(t *testing.T) {
	c.wipe(t)
	l := openLog(t, c.as("ctrl", "c"), Options{Replicas: 3})
	day := events.At(time.Now().Add(24 * time.Hour))
	var mark events.TimerMark
	for round := range events.Seq(30) {
		var wg sync.WaitGroup
		var won atomic.Int32
		next, before := mark, mark
		for range 3 {
			wg.Go(func() {
				many := make([]events.TimerSetting, 1+round*33)
				for i := range many {
					many[i] = events.TimerSetting{Key: logtest.NewKeyRef("shop", "acme"), At: day}
				}
				m, err := l.Set(t.Context(), before, round+1, many...)
				if err == nil {
					won.Add(1)
					next = m
				} else if !errors.Is(err, events.ErrConflict) {
					t.Error(err)
				}
			})
			wg.Go(func() {
				err := l.Rearm(t.Context(), before, events.TimerSetting{Key: logtest.NewKeyRef("shop", "acme"), At: day})
				if err != nil && !errors.Is(err, events.ErrConflict) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if mark = next; won.Load() > 1 {
			t.Fatalf("%d batches from one mark are stored", won.Load())
		}
		if got, err := l.Mark(t.Context()); err != nil || won.Load() == 1 && got != mark {
			t.Fatalf("the mark is %+v, %v, want %+v", got, err, mark)
		} else {
			mark = got
		}
		if err := l.Rearm(t.Context(), before, events.TimerSetting{Key: logtest.NewKeyRef("shop", "acme"), At: day}); won.Load() == 1 && !errors.Is(err, events.ErrConflict) {
			t.Errorf("a setting beside an older mark: %v", err)
		}
		// A setting in flight may have been in the way of every batch: it is in none's now.
		until(t, "a batch from the newest mark is stored", func() bool {
			m, err := l.Set(t.Context(), mark, round+1, events.TimerSetting{Key: logtest.NewKeyRef("shop", "acme"), At: day})
			if err == nil {
				mark = m
				return true
			}
			if mark, err = l.Mark(t.Context()); err != nil {
				t.Fatal(err)
			}
			return false
		})
	}
}
