package commands_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// theSecret finds one secret.
type theSecret string

func (s theSecret) FindSecret(text string) (start, end int, ok bool) {
	i := strings.Index(text, string(s))
	return i, i + len(s), i >= 0
}

// TestQuickGuardClearsOnlyWhatTheThoroughOneDoes, and clears what events are full of.
func TestQuickGuardClearsOnlyWhatTheThoroughOneDoes(t *testing.T) {
	const secret = theSecret("sk_0123456789abcdef")
	created := func(change func(*events.KeyCreated)) *events.KeyCreated {
		d := logtest.Created("one")
		change(d)
		return d
	}
	key := logtest.NewKeyRef("shop", "acme").Aggregate()
	for name, tt := range map[string]struct {
		data events.Data
		want bool
	}{
		"short": {created(func(d *events.KeyCreated) { d.Name = "ci" }), true},
		"long":  {created(func(d *events.KeyCreated) { d.Name = strings.Repeat("a name of a key ", 6) }), true},
		"lists and more": {created(func(d *events.KeyCreated) {
			d.Scopes, d.Metadata, d.ExpiresAt = []string{"read", "write"}, map[string]string{"team": "payments"}, 1767693600000
		}), true},
		"imported":         {&events.KeyImported{KeyCreated: *created(func(*events.KeyCreated) {}), ImportedFrom: "the old gateway"}, true},
		"an empty hint":    {created(func(d *events.KeyCreated) { d.Hint = "" }), true},
		"the secret":       {created(func(d *events.KeyCreated) { d.Name = string(secret) }), false},
		"within":           {created(func(d *events.KeyCreated) { d.Name = "is " + string(secret) + "!" }), false},
		"as a hint":        {created(func(d *events.KeyCreated) { d.Hint = string(secret) }), false},
		"as a name":        {created(func(d *events.KeyCreated) { d.Metadata = map[string]string{string(secret): "a"} }), false},
		"as a value":       {created(func(d *events.KeyCreated) { d.Metadata = map[string]string{"digest": string(secret)} }), false},
		"invisible":        {created(func(d *events.KeyCreated) { d.Name = "c\u200bi" }), false},
		"behind an escape": {created(func(d *events.KeyCreated) { d.Name = `"` + string(secret) }), false},
		"between escapes":  {created(func(d *events.KeyCreated) { d.Name = `"` + string(secret) + `"` }), false}, // quotes that pair up
	} {
		e := logtest.Event(key, tt.data)
		cleared, refused, err := commands.GuardData(secret, &e)
		if err != nil || cleared != tt.want || cleared && refused {
			t.Errorf("%s: cleared %t, refused by the thorough guard %t, %v", name, cleared, refused, err)
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		e := logtest.GenEvent().Draw(r, "event")
		word := rapid.SampledFrom([]string{"", "a", " ", `"`, "\u2028", "é", string(secret), string(secret[:16]), "digest", "before", `,"data":{`})
		text := rapid.SliceOfN(word, 0, 4)
		if d, ok := e.Data.(*events.KeyCreated); ok {
			d.Name = "n" + strings.Join(text.Draw(r, "name"), "")
			d.Metadata = map[string]string{"m" + strings.Join(text.Draw(r, "member"), ""): strings.Join(text.Draw(r, "value"), "")}
		}
		e.Reason = strings.Join(text.Draw(r, "reason"), "")
		cleared, refused, err := commands.GuardData(secret, &e)
		if err == nil && cleared && refused {
			r.Fatalf("cleared, and refused by the thorough guard: %+v", e.Data)
		}
	})
}
