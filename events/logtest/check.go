package logtest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
)

// CheckLog reads the whole log by Follow and verifies it with code that shares
// nothing with the writers: sequences without a gap, stored times that never go
// back, every aggregate's revisions and hashes, the canonical wire form, event
// ids and digests that stand once, and the legality of every life.
func CheckLog(t testing.TB, log events.Log) {
	t.Helper()
	checkRecords(t, ReadAll(t, log))
}

// ReadAll returns every event that is in the log when it is called.
func ReadAll(t testing.TB, log events.Log) []events.Recorded {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	last, err := log.Last(ctx)
	if err != nil {
		t.Fatalf("last: %v", err)
	}
	c := &collector{upto: last}
	if last > 0 {
		if err := log.Follow(ctx, 0, c); !errors.Is(err, errDone) {
			t.Fatalf("follow from 0 to %d: stopped after %d events: %v", last, len(c.got), err)
		}
	}
	return c.got[:last]
}

var errDone = errors.New("read enough")

type collector struct {
	upto events.Seq
	got  []events.Recorded
}

func (c *collector) Apply(batch []events.Recorded) error {
	c.got = append(c.got, batch...)
	if events.Seq(len(c.got)) >= c.upto {
		return errDone
	}
	return nil
}

func (*collector) Fresh(events.Time, events.Seq) {}

func checkRecords(t testing.TB, records []events.Recorded) {
	t.Helper()
	var (
		ids     = map[events.EventID]events.Seq{}
		digests = map[events.Digest]events.Seq{}
		heads   = map[events.Aggregate]events.Chain{}
		keys    = map[events.Aggregate]events.Key{}
		spaces  = map[events.Aggregate]events.Keyspace{}
		lives   = map[events.Aggregate]life{}
		roles   = map[events.Aggregate]events.Role{}
		tenants = map[events.Aggregate]events.Tenant{}
		stored  events.Time
	)
	for i := range records {
		r := &records[i]
		bad := func(format string, a ...any) {
			t.Helper()
			t.Errorf("CheckLog: event %d, %s of %s: "+format, append([]any{i + 1, r.Type(), r.Aggregate}, a...)...)
		}
		if r.Seq != events.Seq(i+1) {
			bad("has sequence %d", r.Seq)
		}
		if r.Stored.Validate() != nil || r.Stored < stored {
			bad("stored at %q after %q", r.Stored, stored)
		}
		stored = r.Stored
		if at := ids[r.ID]; at != 0 {
			bad("id %s stands at %d already", r.ID, at)
		}
		ids[r.ID] = r.Seq
		if d := digestOf(r); !d.IsZero() {
			if at := digests[d]; at != 0 {
				bad("its secret stands at %d already", at)
			}
			digests[d] = r.Seq
		}
		checkWire(bad, r)
		// The chain again, without Chain.Advance.
		head := heads[r.Aggregate]
		if r.Rev != head.Rev+1 || r.Prev != head.Head || r.Seq <= head.Seq {
			bad("rev %d prev %.8s after rev %d head %.8s", r.Rev, r.Prev, head.Rev, head.Head)
		}
		heads[r.Aggregate] = events.Chain{Rev: r.Rev, Head: r.Hash, Seq: r.Seq}
		var err error
		switch a := r.Aggregate; a.Kind {
		case events.KindKey:
			k := keys[a]
			checkBefore(bad, r, &k)
			l, ok := lives[a].next(r)
			if !ok {
				bad("is not legal in the life %+v", lives[a])
			}
			lives[a] = l
			keys[a], err = k.Next(r)
		case events.KindKeyspace:
			k := spaces[a]
			spaces[a], err = k.Next(r)
		case events.KindRole:
			k := roles[a]
			roles[a], err = k.Next(r)
		case events.KindTenant:
			t := tenants[a]
			if d, ok := r.Data.(*events.TenantLimitUpdated); ok && jsonOf(d.Before) != jsonOf(t.Limit) {
				bad("says that before there was %s, but there was %s", jsonOf(d.Before), jsonOf(t.Limit))
			}
			tenants[a], err = t.Next(r)
		case events.KindReader: // a plain list of what was read
		}
		if err != nil {
			bad("%v", err)
		}
	}
}

// life is a key's state machine again, by the names of the events alone: a fault in
// the one that the writers use is not shared by what checks them.
type life struct {
	state   string // "" before the key is there
	rotated bool
}

func (l life) next(r *events.Recorded) (life, bool) {
	live := l.state == "active" || l.state == "disabled"
	ok := live
	switch typ := string(r.Type()); typ {
	case "key.created":
		ok, l.state = l.state == "", "active"
	case "key.imported":
		ok, l.state = l.state == "", cmp.Or(string(r.Data.(*events.KeyImported).Status), "active")
	case "key.disabled":
		ok, l.state = l.state == "active", "disabled"
	case "key.enabled":
		ok, l.state = l.state == "disabled", "active"
	case "key.rotated":
		ok, l.rotated = l.state == "active" && !l.rotated, true
	case "key.revoked", "key.expired":
		l.state = "over"
	}
	return l, ok
}

// checkWire hashes the document of r as it is stored, and reads it again strictly: in
// the version in which it was written, which need not be the newest.
func checkWire(bad func(string, ...any), r *events.Recorded) {
	if h := events.Hash(sha256.Sum256(r.Document)); h != r.Hash {
		bad("hash %.8s of its document, recorded as %.8s", h, r.Hash)
	}
	e, err := events.DecodeStrict(&events.Message{Subject: r.Aggregate.Subject(), Data: r.Document})
	if err != nil {
		bad("does not decode: %v", err)
		return
	}
	said, err := events.Encode(&e)
	if is, eerr := events.Encode(&r.Event); err != nil || eerr != nil || !reflect.DeepEqual(said, is) {
		bad("its document says another event: %v", errors.Join(err, eerr))
	}
}

// checkBefore compares what an event says was there before with what was.
func checkBefore(bad func(string, ...any), r *events.Recorded, k *events.Key) {
	var before, was any
	switch d := r.Data.(type) {
	case *events.KeyScopesAssigned:
		before, was = d.Before, k.Grant
	case *events.KeyResourcesAssigned:
		before, was = d.Before, k.Resources
	case *events.KeyAllowlistUpdated:
		before, was = d.Before, k.Allowlist
	case *events.KeyLimitUpdated:
		before, was = d.Before, k.Limit
	case *events.KeyExpiryChanged:
		before, was = d.Before, k.ExpiresAt
	case *events.KeyRenamed:
		before, was = d.Before, k.Label
	case *events.KeyRotated:
		before, was = d.Before, k.ExpiresAt
	case *events.KeyExpired:
		before, was = d.ExpiredAt, k.ExpiresAt
		if r.Time < d.ExpiredAt {
			bad("expired at %s, recorded before that, at %s", d.ExpiredAt, r.Time)
		}
	default:
		return
	}
	if a, b := jsonOf(before), jsonOf(was); a != b {
		bad("says that before there was %s, but there was %s", a, b)
	}
}

func digestOf(r *events.Recorded) (d events.Digest) {
	switch c := r.Data.(type) {
	case *events.KeyCreated:
		d = c.Digest
	case *events.KeyImported:
		d = c.Digest
	}
	return d
}

// CheckNoSecrets fails t if haystack (a log file, a row, a body, a directory's
// bytes) holds any of the secrets. It never prints them.
func CheckNoSecrets(t testing.TB, haystack []byte, secrets ...events.Secret) {
	t.Helper()
	for i, s := range secrets {
		if s.IsZero() {
			t.Errorf("CheckNoSecrets: secret %d is empty", i)
			continue
		}
		if at := bytes.Index(haystack, []byte(s.Reveal())); at >= 0 {
			t.Errorf("CheckNoSecrets: secret %d of %d (digest %s) stands at offset %d of %d", i+1, len(secrets), s.Digest(), at, len(haystack))
		}
	}
}

// jsonOf prints v so that two values compare as their wire forms do: nil and
// empty lists are the same.
func jsonOf(v any) string {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return err.Error()
	}
	return string(b)
}
