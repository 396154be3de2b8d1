package logtest

import (
	"context"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
)

// Event returns a valid event of a with a fresh id and the present time, still
// without its place in the history: Stamp gives it that.
func Event(a events.Aggregate, d events.Data) events.Event {
	return events.Event{
		ID:        events.EventID(ulid.Make()),
		Aggregate: a,
		Time:      events.At(time.Now()),
		Rev:       1,
		Source:    "/keytrail/test",
		Actor:     events.Actor{Kind: events.ActorSystem, ID: "test"},
		Data:      d,
	}
}

// Stamp makes e the event after c and returns it as a write. It moves c on, so
// that a second event of one Append can follow; only c.Seq stays: it is known
// when the append has returned. It panics on an event that cannot be appended.
func Stamp(c *events.Chain, e events.Event) events.Write {
	w := events.Write{Event: e, Expect: c.Seq}
	w.Event.Rev, w.Event.Prev = c.Rev+1, c.Head
	if err := w.Event.CanAppend(); err != nil {
		panic(err)
	}
	m, err := events.Encode(&w.Event)
	if err != nil {
		panic(err)
	}
	c.Rev, c.Head = w.Event.Rev, m.Hash()
	return w
}

// ChainOf returns where history, as Load returns it, stands.
func ChainOf(history []events.Recorded) (c events.Chain) {
	if n := len(history); n > 0 {
		r := &history[n-1]
		c = events.Chain{Rev: r.Rev, Head: r.Hash, Seq: r.Seq}
	}
	return c
}

// Append appends one event of a for each data, in one atomic append, after what
// the log holds. It fails t on any error.
func Append(t testing.TB, log events.Log, a events.Aggregate, data ...events.Data) events.Seq {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	history, err := log.Load(ctx, a)
	if err != nil {
		t.Fatalf("load %s: %v", a, err)
	}
	c := ChainOf(history)
	var writes []events.Write
	for _, d := range data {
		writes = append(writes, Stamp(&c, Event(a, d)))
	}
	seq, err := log.Append(ctx, writes...)
	if err != nil {
		t.Fatalf("append to %s: %v", a, err)
	}
	return seq
}

// NewKeyRef names a key that does not exist yet.
func NewKeyRef(ks events.KeyspaceID, tenant events.TenantID) events.KeyRef {
	return events.KeyRef{Keyspace: ks, Tenant: tenant, Key: events.KeyID(ulid.Make())}
}

// Created returns the start of a key's life whose secret is secret; the rest
// is the least that is valid.
func Created(secret string) *events.KeyCreated {
	return &events.KeyCreated{Digest: events.NewSecret(secret).Digest(), Hint: "hint", Name: "test", KeyType: "secret"}
}
