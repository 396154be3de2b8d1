package events_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// revokedV2 is key.revoked as the release after the next has it: with all codes.
type revokedV2 struct {
	events.KeyDisabled                     // for what makes it data of a key
	Codes              []events.RevokeCode `json:"codes"`
}

func (*revokedV2) EventType() events.Type { return events.TypeKeyRevoked }

func (d *revokedV2) Validate() error {
	if len(d.Codes) == 0 {
		return errors.New("codes: want at least one")
	}
	return nil
}

type revokedV3 struct {
	revokedV2
	Ticket string `json:"ticket"`
}

// frozen is a type that this release does not have.
type frozen struct {
	events.KeyDisabled
	Until events.Time `json:"until"`
}

func (*frozen) EventType() events.Type { return "key.frozen" }

func next() events.Catalogue {
	return events.NextRelease(
		events.NextVersion{Type: events.TypeKeyRevoked, Since: "2.0", Empty: func() events.Data { return new(revokedV2) },
			Upgrade: func(d events.Data) events.Data {
				return &revokedV2{Codes: []events.RevokeCode{d.(*events.KeyRevoked).Code}}
			}},
		events.NextVersion{Type: "key.frozen", Since: "2.1", Empty: func() events.Data { return new(frozen) }},
		events.NextVersion{Type: events.TypeKeyRevoked, Since: "2.3.1", Empty: func() events.Data { return new(revokedV3) },
			Upgrade: func(d events.Data) events.Data { return &revokedV3{*d.(*revokedV2), "none"} }},
	)
}

// The next release reads each event of today's: byte for byte the same, and its
// data in the newest version.
func TestNextReleaseReadsThisOne(t *testing.T) {
	revoked := 0
	for _, w := range logtest.Samples() {
		m := must(events.Encode(&w.Event))
		e, err := next().DecodeStrict(&m)
		if err != nil {
			t.Fatal(err)
		}
		today := must(events.Decode(&m))
		if d, ok := today.Data.(*events.KeyRevoked); ok {
			revoked++
			if got, ok := e.Data.(*revokedV3); !ok || !reflect.DeepEqual(got.Codes, []events.RevokeCode{d.Code}) || got.Ticket != "none" {
				t.Errorf("read as %+v", e.Data)
			}
			e.Data = today.Data
		}
		if !reflect.DeepEqual(e, today) {
			t.Errorf("reads differently: %+v", e)
		}
	}
	if revoked == 0 {
		t.Error("no event was upgraded")
	}
}

// This release reads the log of the next one up to the first event that it cannot
// know, and says which release is needed.
func TestThisReleaseReadsTheNextUpToWhatItCannotKnow(t *testing.T) {
	key := logtest.NewKeyRef("shop", "acme").Aggregate()
	for _, c := range []struct {
		data    events.Data
		typ     string
		release events.Release
	}{
		{&revokedV3{revokedV2{Codes: []events.RevokeCode{events.RevokeCompromise}}, "SEC-1"}, "keytrail.key.revoked.v3", "2.3.1"},
		{&frozen{Until: 7}, "keytrail.key.frozen.v1", "2.1"},
	} {
		var log []events.Message
		for _, w := range logtest.Samples()[:9] {
			log = append(log, must(next().Encode(&w.Event))) // what this release knows, the next writes as this one does
		}
		e := logtest.Event(key, c.data)
		log = append(log, must(next().Encode(&e)))
		if got := must(next().DecodeStrict(&log[9])); !reflect.DeepEqual(got.Data, c.data) {
			t.Errorf("the next release reads its own as %+v", got.Data)
		}
		for i := range log[:9] {
			if _, err := events.DecodeStrict(&log[i]); err != nil {
				t.Errorf("event %d: %v", i, err)
			}
		}
		_, err := events.Decode(&log[9])
		var newer *events.NewerError
		if !errors.As(err, &newer) || newer.Release != c.release || !strings.Contains(err.Error(), fmt.Sprintf("event type %q is unknown", c.typ)) ||
			!strings.Contains(err.Error(), "Upgrade this process to release "+string(c.release)+", or newer") {
			t.Errorf("%s: %v", c.typ, err)
		}
	}
}

// A catalogue with a hole, without an upgrade or with a release that is none does
// not start.
func TestCatalogueIsWhole(t *testing.T) {
	for name, added := range map[string][]events.NextVersion{
		"no upgrade": {{Type: events.TypeKeyRevoked, Since: "2.0", Empty: func() events.Data { return new(revokedV2) }}},
		"no release": {{Type: "key.frozen", Since: "next", Empty: func() events.Data { return new(frozen) }}},
		"other data": {{Type: "key.melted", Since: "2.0", Empty: func() events.Data { return new(frozen) }}},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: accepted", name)
				}
			}()
			events.NextRelease(added...)
		}()
	}
}

// upgrading is the next release as it is while older processes run: it knows how to
// say a revocation with one code as they read it.
func upgrading() events.Catalogue {
	return events.NextRelease(
		events.NextVersion{Type: events.TypeKeyRevoked, Since: "2.0", Empty: func() events.Data { return new(revokedV2) },
			Upgrade: func(d events.Data) events.Data {
				return &revokedV2{Codes: []events.RevokeCode{d.(*events.KeyRevoked).Code}}
			},
			Lower: func(d events.Data) events.Data { return &events.KeyRevoked{Code: d.(*revokedV2).Codes[0]} }},
		events.NextVersion{Type: "key.frozen", Since: "2.1", Empty: func() events.Data { return new(frozen) }},
	)
}

// The next release writes the newest version that every reader knows. What that one
// cannot say is not written, and nothing of it is lost on the way.
func TestNextReleaseWritesForTheReaders(t *testing.T) {
	one, two := []events.RevokeCode{events.RevokeCompromise}, []events.RevokeCode{events.RevokeCompromise, events.RevokeSuperseded}
	key := logtest.NewKeyRef("shop", "acme").Aggregate()
	for _, c := range []struct {
		data    events.Data
		readers events.Release
		typ     string // "" = not written
	}{
		{&revokedV2{Codes: one}, "1.0", "key.revoked.v1"},
		{&revokedV2{Codes: one}, "1.9.9", "key.revoked.v1"},
		{&revokedV2{Codes: one}, "2.0", "key.revoked.v2"},
		{&revokedV2{Codes: one}, "10.0", "key.revoked.v2"},
		{&revokedV2{Codes: one}, "", "key.revoked.v2"},
		{&revokedV2{Codes: two}, "1.0", ""}, // what Lower drops
		{&revokedV2{Codes: two}, "2.0.1", "key.revoked.v2"},
		{&frozen{Until: 7}, "2.0", ""},
		{&frozen{Until: 7}, "2.1", "key.frozen.v1"},
		{&events.KeyEnabled{}, "1.0", "key.enabled.v1"},
	} {
		e := logtest.Event(key, c.data)
		m, err := upgrading().EncodeFor(&e, c.readers)
		if c.typ == "" {
			if !errors.Is(err, events.ErrUnavailable) || !strings.Contains(err.Error(), "upgrade them") {
				t.Errorf("%+v for %s: %v, %s", c.data, c.readers, err, m.Data)
			}
			continue
		}
		if err != nil || !strings.Contains(string(m.Data), `"type":"keytrail.`+c.typ+`"`) {
			t.Errorf("%+v for %s: %v, %s", c.data, c.readers, err, m.Data)
			continue
		}
		if got, err := upgrading().DecodeStrict(&m); err != nil || !reflect.DeepEqual(got, e) {
			t.Errorf("%+v for %s is read as %+v, %v", c.data, c.readers, got.Data, err)
		}
		_, err = events.Decode(&m)
		if today := c.typ == "key.revoked.v1" || c.typ == "key.enabled.v1"; (err == nil) != today {
			t.Errorf("%+v for %s: this release reads it: %v", c.data, c.readers, err)
		}
	}
}

func TestReleasesInOrder(t *testing.T) {
	order := []events.Release{"1.0", "1.0.1", "1.9", "1.10", "2.0", "2.0.1", "10.0"}
	for i, a := range order {
		for j, b := range order {
			if a.Before(b) != (i < j) {
				t.Errorf("%s before %s: %v", a, b, a.Before(b))
			}
		}
	}
	if events.Release("").Before("1.0") || events.Release("1.0").Before("") || events.Release("1.0.0").Before("1.0") || events.Release("1.0").Before("1.0.0") {
		t.Error("the first release has an order within itself")
	}
	for _, bad := range []events.Release{"", "1", "v1.0", "1.0.0.0", "next", "1.0 "} {
		if bad.Validate() == nil {
			t.Errorf("%q is a release", bad)
		}
	}
	var newer *events.NewerError
	if err := events.Release("2.1").Runs(); !errors.As(err, &newer) || !strings.Contains(err.Error(), "Upgrade this process to release 2.1, or newer") {
		t.Error(err)
	}
	if err := events.ThisRelease().Runs(); err != nil {
		t.Error(err)
	}
}
