package flight

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A run answers only those who asked before it began, and never two runs overlap.
func TestARunBeginsAfterTheCallsThatItAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[time.Time]
		var running atomic.Int32
		run := func(context.Context) (time.Time, error) {
			if running.Add(1) != 1 {
				t.Error("two runs at once")
			}
			defer running.Add(-1)
			began := time.Now()
			time.Sleep(time.Second)
			return began, nil
		}
		var wg sync.WaitGroup
		var runs sync.Map
		for i := range 40 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 100 * time.Millisecond)
				asked := time.Now()
				began, err := g.Do(t.Context(), run)
				if err != nil || began.Before(asked) || began.Sub(asked) > time.Second {
					t.Errorf("asked at %s, answered by a run of %s, %v", asked, began, err)
				}
				runs.Store(began, nil)
			})
		}
		wg.Wait()
		n := 0
		runs.Range(func(any, any) bool { n++; return true })
		if n > 6 {
			t.Errorf("%d runs for 40 calls within 4 s: they are not shared", n)
		}
	})
}

func TestACallerWhoLeavesEndsNoRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Group[int]
		ctx, cancel := context.WithCancel(t.Context())
		fail := errors.New("fails")
		go g.Do(ctx, func(ctx context.Context) (int, error) {
			time.Sleep(time.Second)
			if ctx.Err() != nil {
				t.Error("the run was ended by its caller")
			}
			return 1, fail
		})
		synctest.Wait()
		cancel()
		if _, err := g.Do(ctx, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("a caller whose context has ended: %v", err)
		}
		time.Sleep(3 * time.Second)
	})
}
