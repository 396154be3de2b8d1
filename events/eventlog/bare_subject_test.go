package eventlog

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/events/tree"
)

// A replay without headers cannot see under which subject a document is stored, and
// takes the one that the document repeats. A scrub and a check read the headers: the
// leaf of such an event is another one than that of the view, and the check names it.
func TestDocumentUnderAnotherSubject(t *testing.T) {
	s := testServer(t, server.Config{Dir: t.TempDir(), MaxStore: 4 << 30})
	initLog(t, s)
	l := openLog(t, conn(t, s.Connect), Options{})
	if _, err := l.Append(t.Context(), first(noted("a"), note(1))); err != nil {
		t.Fatal(err)
	}
	w := first(logtest.NewKeyRef("shop", "acme").Aggregate(), logtest.Created("x"))
	m, err := events.Encode(&w.Event)
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(conn(t, s.ConnectAdmin))
	if err != nil {
		t.Fatal(err)
	}
	other := logtest.NewKeyRef("shop", "other").Aggregate().Subject()
	if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: other, Data: m.Data, Header: nats.Header{hdrContentType: {events.ContentType}}}); err != nil {
		t.Fatal(err)
	}
	bare := untimed{&gather{last: 2}}
	if err := l.Follow(t.Context(), 0, bare); !errors.Is(err, errEnough) {
		t.Fatal(err) // were it refused here, readBare would read the subject: say so in its comment
	}
	var view, stored tree.Range
	for _, r := range bare.events {
		view.Append(tree.LeafHash(r.Aggregate.Subject(), r.Hash))
	}
	if err := l.Leaves(t.Context(), 1, 2, 1000, func(_ events.Seq, subject string, document events.Hash) error {
		stored.Append(tree.LeafHash(subject, document))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if view.Root() == stored.Root() {
		t.Error("a scrub does not see that the document is stored under another subject")
	}
	corrupt := (*events.CorruptError)(nil)
	if err := l.Check(t.Context(), nil); !errors.As(err, &corrupt) || corrupt.Seq != 2 {
		t.Errorf("the check says %v, want event 2 named", err)
	}
	if err := l.Follow(t.Context(), 0, &gather{last: 2}); !errors.As(err, &corrupt) || corrupt.Seq != 2 {
		t.Errorf("a follower that reads headers says %v, want event 2 named", err)
	}
}
