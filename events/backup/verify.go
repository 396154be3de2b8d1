package backup

import (
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// Report says what a verification has read and what it rests on.
type Report struct {
	Log        events.LogID   `json:"log"`
	Streams    []StreamReport `json:"streams"`
	Manifest   bool           `json:"manifest"`             // the roots are those of a manifest
	Checkpoint uint64         `json:"checkpoint,omitempty"` // the root of this many events of KT_LIFE is that of a checkpoint
	Compared   uint64         `json:"compared,omitempty"`   // so many messages are byte for byte those of another copy
}

// StreamReport is what was read of one stream.
type StreamReport struct {
	Extent
	Unreadable uint64 `json:"unreadable,omitempty"` // messages of KT_USE that no auditor can read either
	FirstBad   uint64 `json:"first_bad,omitempty"`  // and the first of them
}

// Unproven says what the report's evidence cannot show, "" when that is nothing
// but what no copy can show.
func (r *Report) Unproven() string {
	switch life := r.Of(Life); {
	case r.Checkpoint == life.Messages() && r.Checkpoint > 0:
		return ""
	case r.Checkpoint > 0:
		return fmt.Sprintf("the checkpoint covers KT_LIFE up to sequence %d: an event after it that was rewritten with its whole history would not show", r.Checkpoint)
	case r.Manifest:
		return "no checkpoint was given: a file whose events and manifest were rewritten together would not show"
	}
	return "neither a manifest nor a checkpoint was given: an event that was rewritten with its whole history would not show, nor would a tail that was cut"
}

// Of returns what was read of a stream.
func (r *Report) Of(stream string) StreamReport {
	for _, s := range r.Streams {
		if s.Stream == stream {
			return s
		}
	}
	return StreamReport{Extent: Extent{Stream: stream, First: 1}}
}

// Evidence is what a log is compared with beside its own rules.
type Evidence struct {
	Manifest   *Manifest        // nil = none
	Checkpoint *tree.Checkpoint // verified; nil = none
	Other      *Reader          // another copy of the log, older or newer; nil = none
	Live       bool             // the log itself is checked: it must hold what Other holds
}

// size returns the size whose root of KT_LIFE the evidence asks for.
func (e *Evidence) size() uint64 {
	if e.Checkpoint == nil {
		return math.MaxUint64
	}
	return e.Checkpoint.Size
}

// check compares the report of all streams, and the checker of KT_LIFE, with the
// evidence. The error is a *Fault.
func (e *Evidence) check(r *Report, life *Checker, restored []events.Ancestor) error {
	if cp := e.Checkpoint; cp != nil {
		if err := covers(cp, r.Log, restored); err != nil {
			return err
		}
		want := Extent{Stream: Life, First: 1, Last: cp.Size, Root: cp.Root}
		got := Extent{Stream: Life, First: life.First, Last: life.Last}
		if root, ok := life.RootAt(cp.Size); ok {
			got.Last, got.Root = cp.Size, root
		}
		if err := Compare(got, want, "the checkpoint"); err != nil {
			return err
		}
		r.Checkpoint = cp.Size
	}
	if e.Manifest == nil {
		return nil
	}
	for _, s := range r.Streams {
		if err := Compare(s.Extent, e.Manifest.Of(s.Stream), "the manifest"); err != nil {
			return err
		}
	}
	r.Manifest = true
	return nil
}

// covers refuses a checkpoint of another log. One of an ancestor counts as far as
// the log holds that ancestor's events.
func covers(cp *tree.Checkpoint, log events.LogID, restored []events.Ancestor) error {
	if cp.Origin == tree.Origin(log.String()) {
		return nil
	}
	for _, a := range restored {
		if cp.Origin == tree.Origin(a.Log.String()) && cp.Size <= uint64(a.Size) {
			return nil
		}
	}
	return &Fault{Reason: fmt.Sprintf("the checkpoint is of %s with %d events, this is log %s: want a checkpoint of this log, or of the log that it was restored from, as far as it was restored", cp.Origin, cp.Size, log)}
}

// Verify reads a whole backup and checks it, against the checkpoint and the other copy
// too, if there are any. The report is of what was read before an error, which is a *Fault
// that names the first sequence that is wrong, or one of the reader.
func Verify(r io.Reader, e Evidence) (Report, error) {
	return VerifyEach(r, e, func(*Message) error { return nil })
}

// VerifyEach is Verify that hands each message to f once it is checked. An error of
// f ends it.
func VerifyEach(r io.Reader, e Evidence, f func(*Message) error) (report Report, err error) {
	b, err := NewReader(r)
	if err != nil {
		return report, err
	}
	report.Log = b.Header().Log
	v, err := NewVerification(b.Header().Log, b.Header().Restored, e)
	if err != nil {
		return report, err
	}
	for {
		m, err := b.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = v.Take(&m)
		}
		if err == nil {
			err = f(&m)
		}
		if err != nil {
			return v.Report(), err
		}
	}
	for _, e := range b.seen { // streams without messages too
		v.begin(e.Stream, e.First)
	}
	manifest := b.Manifest()
	v.evidence.Manifest = &manifest
	return v.Done()
}

// Verification checks a whole log, stream by stream, whoever hands its messages
// in.
type Verification struct {
	log      events.LogID
	restored []events.Ancestor
	evidence Evidence
	checkers []*Checker
	other    *comparison
}

// NewVerification begins a verification of the log with this id.
// The error is a *Fault: the other copy is of another log.
func NewVerification(log events.LogID, restored []events.Ancestor, e Evidence) (*Verification, error) {
	other, err := newComparison(log, restored, &e)
	return &Verification{log: log, restored: restored, evidence: e, other: other}, err
}

// begin returns the checker of a stream.
func (v *Verification) begin(stream string, first uint64) *Checker {
	for _, c := range v.checkers {
		if c.Stream == stream {
			return c
		}
	}
	c := NewChecker(stream, first, v.evidence.size())
	v.checkers = append(v.checkers, c)
	return c
}

// Begin says that a stream begins with the message first. It is needed for a stream
// without messages only.
func (v *Verification) Begin(stream string, first uint64) { v.begin(stream, first) }

// Take checks the next message of its stream. The error is a *Fault.
func (v *Verification) Take(m *Message) error {
	first := m.Seq
	if m.Stream != Use {
		first = 1
	}
	if err := v.begin(m.Stream, first).Take(m); err != nil {
		return err
	}
	return v.other.take(m)
}

// Done compares what was read with the evidence. The error is a *Fault.
func (v *Verification) Done() (Report, error) {
	r := v.Report()
	if err := v.other.end(); err != nil {
		return r, err
	}
	return r, v.evidence.check(&r, v.begin(Life, 1), v.restored)
}

// Report returns what was read so far; its evidence is none.
func (v *Verification) Report() Report {
	r := Report{Log: v.log, Compared: v.other.same}
	for _, name := range Streams() {
		for _, c := range v.checkers {
			if c.Stream == name {
				r.Streams = append(r.Streams, StreamReport{c.Done(), c.Unreadable, c.FirstBad})
			}
		}
	}
	return r
}
