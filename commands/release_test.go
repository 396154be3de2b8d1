package commands

import (
	"slices"
	"testing"

	"github.com/keytrail/keytrail/commands/receipts"
	"github.com/keytrail/keytrail/events"
)

// What may be written is what every run reads that may answer, or of which nothing is
// known.
func TestReadersAreThoseThatMayAnswer(t *testing.T) {
	run := func(node events.NodeID, state receipts.State, r events.Release) receipts.Run {
		return receipts.Run{State: state, StoredLease: events.StoredLease{NodeLease: events.NodeLease{Node: node, Release: r}}}
	}
	for name, c := range map[string]struct {
		runs  []receipts.Run
		least events.Release
		older []string
	}{
		"nobody":              {nil, "2.1", nil},
		"all newer":           {[]receipts.Run{run("a", receipts.Live, "2.1"), run("b", receipts.Live, "3.0")}, "2.1", nil},
		"one older":           {[]receipts.Run{run("a", receipts.Live, "2.0"), run("b", receipts.Live, "2.1")}, "2.0", []string{"a"}},
		"two runs of a node":  {[]receipts.Run{run("a", receipts.Live, "2.0"), run("a", receipts.Live, "1.5"), run("b", receipts.Live, "2.0.9")}, "1.5", []string{"a", "b"}},
		"one says nothing":    {[]receipts.Run{run("a", receipts.Live, ""), run("b", receipts.Live, "2.1")}, "", []string{"a"}},
		"one is unreadable":   {[]receipts.Run{run("a", receipts.Unreadable, ""), run("b", receipts.Live, "2.1")}, "", []string{"a"}},
		"older ones are gone": {[]receipts.Run{run("a", receipts.Ended, "1.0"), run("a", receipts.Lapsed, "1.0"), run("a", receipts.Live, "2.1")}, "2.1", nil},
	} {
		least, older := readers(&receipts.Sight{Runs: c.runs}, "2.1")
		if least != c.least || !slices.Equal(older, c.older) {
			t.Errorf("%s: %q, %v, want %q, %v", name, least, older, c.least, c.older)
		}
	}
}
