package logtest

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/keytrail/keytrail/events"
)

// TestCheckpoints is the contract of events.Checkpoints. newLog returns an empty log
// of checkpoints for each case.
func TestCheckpoints(t *testing.T, newLog func(t *testing.T) events.Checkpoints) {
	t.Run("the newest one is returned", func(t *testing.T) {
		c := newLog(t)
		if got, err := c.Last(t.Context()); err != nil || got.Seq != 0 || got.Text != nil {
			t.Fatalf("of an empty log: %+v, %v", got, err)
		}
		var after events.Seq
		for i := range 3 {
			text := fmt.Appendf(nil, "checkpoint %d\n", i)
			seq, err := c.Append(t.Context(), after, text)
			if err != nil || seq <= after {
				t.Fatalf("append after %d: %d, %v", after, seq, err)
			}
			if got, err := c.Last(t.Context()); err != nil || got.Seq != seq || !bytes.Equal(got.Text, text) {
				t.Fatalf("%+v, %v: want %q at %d", got, err, text, seq)
			}
			after = seq
		}
	})
	t.Run("an append that does not follow the newest stores nothing", func(t *testing.T) {
		c := newLog(t)
		if _, err := c.Append(t.Context(), 1, []byte("a")); !errors.Is(err, events.ErrConflict) {
			t.Fatal("after one that is not there:", err)
		}
		first, err := c.Append(t.Context(), 0, []byte("a"))
		if err != nil {
			t.Fatal(err)
		}
		second, err := c.Append(t.Context(), first, []byte("b"))
		if err != nil {
			t.Fatal(err)
		}
		for _, after := range []events.Seq{0, first, second + 1} {
			if _, err := c.Append(t.Context(), after, []byte("c")); !errors.Is(err, events.ErrConflict) {
				t.Errorf("after %d: %v", after, err)
			}
		}
		if got, err := c.Last(t.Context()); err != nil || got.Seq != second || string(got.Text) != "b" {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("of concurrent appends one is stored", func(t *testing.T) {
		c := newLog(t)
		var after events.Seq
		for range 10 {
			const signers = 4
			var wg sync.WaitGroup
			var seqs [signers]events.Seq
			var errs [signers]error
			for i := range signers {
				wg.Go(func() { seqs[i], errs[i] = c.Append(t.Context(), after, fmt.Append(nil, i)) })
			}
			wg.Wait()
			got, err := c.Last(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			won := 0
			for i := range signers {
				if errs[i] == nil {
					won++
					if got.Seq != seqs[i] || string(got.Text) != fmt.Sprint(i) {
						t.Errorf("%d was acknowledged at %d, and %+v is stored", i, seqs[i], got)
					}
				} else if !errors.Is(errs[i], events.ErrConflict) {
					t.Error(errs[i])
				}
			}
			if won != 1 {
				t.Errorf("%d appends after %d succeeded", won, after)
			}
			after = got.Seq
		}
	})
	t.Run("what is no checkpoint is refused", func(t *testing.T) {
		c := newLog(t)
		for _, text := range [][]byte{nil, {}, make([]byte, events.MaxCheckpoint+1)} {
			_, err := c.Append(t.Context(), 0, text)
			for _, class := range []error{nil, events.ErrConflict, events.ErrUnavailable, events.ErrUnknownOutcome, events.ErrFull} {
				if errors.Is(err, class) {
					t.Errorf("%d bytes: %v", len(text), err)
				}
			}
		}
		if _, err := c.Append(t.Context(), 0, make([]byte, events.MaxCheckpoint)); err != nil {
			t.Error("the longest one:", err)
		}
	})
}
