package keyspace_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events/keyspace"
)

// TestDrawnSecretsAreFound: a secret of any key type with a prefix, or a checksum, is
// found in any text by its form.
func TestDrawnSecretsAreFound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kt := genForm("a", `[a-z]{0,4}(_?\{_)?`, 24, 32, 40).Draw(t, "type")
		secret, _ := drawSecret(t, &kt)
		before := rapid.StringMatching(`([ -~]{0,20}[ "'=:])?`).Draw(t, "before")
		after := rapid.StringMatching(`([ "',&][ -~]{0,20})?`).Draw(t, "after")
		text := before + secret + after
		start, end, ok := keyspace.Compile(keyspace.Definition{KeyTypes: []keyspace.KeyType{kt}}, nil).Find(text)
		switch marked := kt.Prefix != "" || kt.Checksum != ""; {
		case !ok && marked:
			t.Fatalf("not found: %q in %q", secret, text)
		case ok && (!marked || start < 0 || end > len(text) || end-start != len(secret)):
			t.Fatalf("of %q: %d to %d", text, start, end)
		}
	})
}
