package input_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/keytrail/keytrail/events/input"
)

func TestAcceptText(t *testing.T) {
	for _, s := range []string{
		"", "ci", "CI/CD Pipeline", "Müller & Söhne", "e\u0301", "日本語\u3000名", "می\u200cخواهم", "क्\u200dष", "עברית", "العربية ٣ ۴",
		"👍🏽", "👩\u200d💻", "❤\ufe0f", "1\ufe0f\u20e3", "🇩🇪", "🏳\ufe0f\u200d🌈", "Team · CI", "a\u00a0b", "€ 5 ‱", "<script>", "ウ・エ",
	} {
		if err := input.AcceptText(s, 100); err != nil {
			t.Errorf("%+q: %v", s, err)
		}
	}
	for s, r := range map[string]string{
		"a\u200bb": "U+200B", "a\u202eb": "U+202E", "\u2066x\u2069": "U+2066", "\ufeffx": "U+FEFF", "a\u00adb": "U+00AD", "a\u2028b": "U+2028",
		"\u115f": "U+115F", "\u3164": "U+3164", "\U000e0041": "U+E0041", "\u061c": "U+061C", "\u034f": "U+034F", "a\ufe0f": "U+FE0F",
		"a\u2060b": "U+2060", "\ue000": "U+E000", "\u180e": "U+180E",
		"a\u200db": "U+200D", "a\u200cb": "U+200C", "👩\u200da": "U+200D", "\u2800": "U+2800",
		"a\x1b[2Jb": "no control characters", "a\nb": "no control characters", "\u009b31m": "no control characters", "\xff": "UTF-8",
	} {
		if err := input.AcceptText(s, 100); err == nil || !strings.Contains(err.Error(), r) {
			t.Errorf("%+q: %v, want %s", s, err, r)
		}
	}
	if input.AcceptText(strings.Repeat("ü", 100), 100) != nil || input.AcceptText(strings.Repeat("ü", 101), 100) == nil {
		t.Error("the length is not counted in characters")
	}
	// What is stored is held to its structure alone.
	if err := input.CheckText("a\u202eb", 100); err != nil {
		t.Errorf("stored text: %v", err)
	}
}

func TestEchoRepeatsNoWordThatCouldBeASecret(t *testing.T) {
	for _, tt := range []struct{ s, want string }{
		{"", `""`},
		{"read", `"read"`},
		{"fifteen-chars-1", `"fifteen-chars-1"`},
		{"sixteen-chars-12", "of 16 characters"},
		{"sk_live_" + strings.Repeat("x", 32), "of 40 characters"},
		{"see sk_live_abcdefgh in the wiki", "of 32 characters"},
		{"sk_live_\u200babcdefgh", "of 17 characters"},
		{"sk_live_\tabcdefgh", "of 17 characters"},
		{"a few short words that go on for long enough", `"a few short words that go on for long en…"`},
		{"\x1b[2J\u202e", `"\x1b[2J\u202e"`},
		{"\xff", `"\xff"`},
	} {
		if got := input.Echo(tt.s); got != tt.want {
			t.Errorf("%q: %s, want %s", tt.s, got, tt.want)
		}
	}
}

// FuzzText: what is echoed can be seen, is short and never holds a word of the
// text that could be a secret; and what is accepted can be written to a terminal.
func FuzzText(f *testing.F) {
	f.Add("sk_live_0123456789abcdef and more", "👩\u200d💻")
	f.Add("\u202e\x1b", "a\u200cb")
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, s := range []string{a, b, a + b} {
			got := input.Echo(s)
			if !utf8.ValidString(got) || utf8.RuneCountInString(got) > 450 || strings.ContainsAny(got, "\x1b\n\r\u202e\u200b") {
				t.Errorf("%q: %q", s, got)
			}
			for _, w := range strings.Fields(s) {
				if secret := len(w) > input.MaxWord && !strings.ContainsFunc(w, func(r rune) bool { return r < '!' || r > '~' }); secret && strings.Contains(got, w) {
					t.Errorf("%q repeats %q", got, w)
				}
			}
			if input.AcceptText(s, 1000) == nil && strings.ContainsAny(s, "\x1b\x00\n\u009b\u200b\u202e\u2066\ufeff") {
				t.Errorf("%q is accepted", s)
			}
		}
	})
}
