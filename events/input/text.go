package input

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/text/secure/precis"
)

// AcceptText is CheckText for text that comes in: of at most max characters, and
// of characters that can be seen. CheckText alone is what stored text is held to,
// because a rule that tightens must not make an old log unreadable.
//
// The rule is PRECIS's FreeformClass (RFC 8264): letters, marks, digits,
// punctuation, symbols and spaces of all scripts. It has no control characters,
// no invisible ones and none that change the direction of other text, which would
// make one name look like another. Emoji are accepted as they are written.
func AcceptText(s string, max int) error {
	if err := CheckText(s, max); err != nil {
		return err
	}
	return Visible(s)
}

// Visible reports whether s holds only characters that can be seen, and spaces.
func Visible(s string) error {
	if !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return nil
	}
	plain := withoutSequences(s)
	if _, err := freeform.String(plain); err == nil && !strings.ContainsRune(s, blank) {
		return nil
	}
	for _, r := range plain {
		if _, err := freeform.String(string(r)); err != nil || r == blank {
			return fmt.Errorf("want only characters that can be seen: %U is invisible, or changes the direction of the text", r)
		}
	}
	return fmt.Errorf("want only characters that can be seen")
}

// freeform has no options: it normalises what it returns, which is not used.
var freeform = precis.NewFreeform()

const (
	joiner      = '\u200d' // zero width joiner
	presentText = '\ufe0e' // variation selector: as text
	present     = '\ufe0f' // variation selector: as an emoji
	blank       = '\u2800' // a Braille cell without dots
)

// withoutSequences takes from s what emoji need and FreeformClass has not: the
// variation selectors behind a symbol, a digit, # or *, and the joiner between
// two symbols. It replaces the characters that FreeformClass wants between
// certain others (CONTEXTO): they can be seen everywhere.
func withoutSequences(s string) string {
	rs := []rune(s)
	out := rs[:0:0]
	for i, r := range rs {
		before, after := rune(0), rune(0)
		if i > 0 {
			before = rs[i-1]
		}
		if i+1 < len(rs) {
			after = rs[i+1]
		}
		switch {
		case r == present || r == presentText:
			if pictorial(before) || before == '#' || before == '*' || before >= '0' && before <= '9' {
				continue
			}
		case r == joiner && (pictorial(before) || before == present) && pictorial(after):
			continue
		case r == '·' || r == '・' || r == '\u0375' || r == '\u05f3' || r == '\u05f4':
			r = '.'
		case r >= '\u0660' && r <= '\u0669' || r >= '\u06f0' && r <= '\u06f9':
			r = '0'
		}
		out = append(out, r)
	}
	return string(out)
}

// pictorial reports whether r is of the symbols among which emoji are.
func pictorial(r rune) bool {
	return r > 0xff && unicode.In(r, unicode.So, unicode.Sk, unicode.Sm, unicode.Po)
}

// MaxWord is the longest word that Echo repeats, in characters. Every secret is longer.
const MaxWord = 15

// Echo returns s as an error, an answer or a log line may repeat it: in quotes,
// with what cannot be seen escaped, and cut. It is the only way by which text of
// a caller gets there (TestTextIsEchoed in cmd holds the code to that). Where a
// secret may have been put, nobody knows which words are secrets; but each is a
// word of more than MaxWord characters. So Echo repeats no word of that
// length, and says how long the text was.
func Echo[S ~string](s S) string {
	word := 0
	for _, r := range string(s) {
		if word++; r == ' ' {
			word = 0
		}
		if word > MaxWord {
			return "of " + strconv.Itoa(len([]rune(string(s)))) + " characters"
		}
	}
	if len(s) > 40 {
		return strconv.Quote(strings.ToValidUTF8(string(s[:40]), "") + "…")
	}
	return strconv.Quote(string(s))
}

// Quote returns text of the record in quotes, with what cannot be seen escaped, and
// cut where no name goes on: the name of a scope, a role, a type of event. What is
// stored has passed the write side's guard against secrets, so it may be told to
// those who may read it.
func Quote[S ~string](s S) string {
	if len(s) > 128 {
		return strconv.Quote(strings.ToValidUTF8(string(s[:128]), "") + "…")
	}
	return strconv.Quote(string(s))
}

// EchoName returns s as the path of a field may repeat a name that the caller
// chose: as it is, if it is short and plain or reads like a member's name, as
// max_staleness does; else "…".
func EchoName[S ~string](s S) string {
	chars := Lower + Upper + Digits + "_-"
	if len(s) > MaxWord {
		chars = Lower + "_"
	}
	if s == "" || len(s) > 40 || strings.Trim(string(s), chars) != "" {
		return "…"
	}
	return string(s)
}
