package backup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/keytrail/keytrail/events"
)

// comparison compares messages with those of another copy, which comes in the same
// order. Retention may have taken more of KT_USE from one of the two.
type comparison struct {
	r      *Reader // nil = there is none
	whole  bool    // what the other copy has of KT_LIFE and KT_READ must be there
	common map[string]uint64
	m      Message // the other copy's next message
	same   uint64  // how many were equal
}

// newComparison compares the log with the evidence's other copy, nil = none.
func newComparison(log events.LogID, restored []events.Ancestor, e *Evidence) (*comparison, error) {
	c := &comparison{r: e.Other, whole: e.Live, common: map[string]uint64{Life: math.MaxUint64, Read: math.MaxUint64, Use: math.MaxUint64}}
	if c.r == nil || c.r.Header().Log == log {
		return c, nil
	}
	for _, a := range restored {
		if a.Log == c.r.Header().Log { // what the ancestor took later is not this log's
			c.common = map[string]uint64{Life: uint64(a.Size), Read: uint64(a.Reads), Use: uint64(a.Uses)}
			return c, nil
		}
	}
	return c, &Fault{Reason: fmt.Sprintf("the other copy is of log %s, this is log %s: want one of this log, or of a log that it was restored from", c.r.Header().Log, log)}
}

// take compares one message with the one that the other copy has in its place, if it
// has one. The error is a *Fault.
func (c *comparison) take(m *Message) error {
	for c.r != nil && (c.m.Stream == "" || before(&c.m, m)) {
		if err := c.next(); err != nil {
			return err
		}
	}
	if c.r == nil || c.m.Stream != m.Stream || c.m.Seq != m.Seq || m.Seq > c.common[m.Stream] {
		return nil
	}
	if c.m.Subject != m.Subject || !bytes.Equal(c.m.Data, m.Data) {
		return &Fault{Stream: m.Stream, Seq: m.Seq, Reason: "the other copy has another message here: one of the two was rewritten"}
	}
	c.same++
	c.m.Stream = "" // it is done
	return nil
}

// next goes on to the other copy's next message; it drops the one before, which this
// log does not have.
func (c *comparison) next() (err error) {
	if m := &c.m; c.whole && (m.Stream == Life || m.Stream == Read) && m.Seq <= c.common[m.Stream] {
		return &Fault{Stream: m.Stream, Seq: m.Seq, Reason: "missing: the other copy has it"}
	}
	c.m, err = c.r.Next()
	if errors.Is(err, io.EOF) {
		c.r = nil
		return nil
	}
	if err != nil {
		return &Fault{Reason: "the other copy: " + err.Error()}
	}
	return nil
}

// end reads the rest of the other copy, whose own damage is a fault too.
func (c *comparison) end() error {
	for c.r != nil {
		if err := c.next(); err != nil {
			return err
		}
	}
	return nil
}

// before reports whether a stands before b in a backup.
func before(a, b *Message) bool {
	if a.Stream != b.Stream {
		return slices.Index(Streams(), a.Stream) < slices.Index(Streams(), b.Stream)
	}
	return a.Seq < b.Seq
}
