package eventlog

import (
	"bytes"
	"context"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
)

// bare reports whether bulk reads may go without headers. A verifier's may not: a reply
// that was aimed at it shows only in its headers (doc.go).
func (l *Lifecycle) bare() bool { return l.api != edgeAPI && l.events == events.Lifecycle }

// readBare reads as much of a part as one answer without headers gives. For a stored
// message with headers the server writes all of them anew six times, to add where it
// stands: without, reading costs a third.
//
// Where the messages stand follows from the end of the answer, which names the sequence
// of the last one. Sequences rise, so if the last of n stands n-1 after the first that
// was asked for, none is missing. The subject is the one that the document repeats;
// that the log holds the document under it is part of the tree, which the scrub reads
// with the headers. Whatever is not as it should be is left for readPart, which says
// what it is.
func (l *Lifecycle) readBare(ctx context.Context, p *part) {
	complete := false
	err := l.replies(ctx, l.stream, getRequest{Seq: p.first, Batch: p.n, MaxBytes: bulkBytes, NoHeaders: true}, func(m *nats.Msg, end bool) error {
		if end {
			last, err := strconv.ParseUint(said(m, "Nats-Last-Sequence"), 10, 64)
			complete = err == nil && events.Seq(last) == p.first+events.Seq(len(p.out))-1
			return err
		}
		s := stored{seq: p.first + events.Seq(len(p.out)), subject: subjectOf(m.Data), data: m.Data}
		r, err := s.decode()
		if err == nil {
			p.out = append(p.out, r)
		}
		return err
	})
	if err != nil || !complete {
		p.out = p.out[:0]
	}
}

// subjectOf returns the subject of NATS under which a lifecycle event is stored, by its
// document. No string can hold the name of the member with its quotes unescaped.
func subjectOf(document []byte) string {
	_, rest, _ := bytes.Cut(document, []byte(`,"subject":"`))
	subject, _, _ := bytes.Cut(rest, []byte(`"`))
	return events.LifePrefix + strings.ReplaceAll(string(subject), "/", ".")
}
