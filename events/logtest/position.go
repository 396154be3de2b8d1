package logtest

import "github.com/keytrail/keytrail/events"

// PositionAt returns the position of event seq of a log of fewer than 4,096 events, by
// the definition of a position and not as a view does it. Of an event beyond the last
// the fingerprint is zero.
func PositionAt(id events.LogID, log []events.Recorded, seq events.Seq) events.Position {
	p := events.Position{Log: id, Seq: seq}
	switch {
	case len(log) >= 4096:
		panic("a position of a longer log needs the root of its tree")
	case seq > 0 && seq <= events.Seq(len(log)):
		p.History = events.NewFingerprint(log[seq-1].Hash, events.Hash{})
	}
	return p
}
