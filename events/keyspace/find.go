package keyspace

import (
	"strings"

	"github.com/keytrail/keytrail/events/input"
)

// form is what the secrets of one key type in one environment look like, made ready
// for telling them: nothing here allocates.
type form struct {
	of          *KeyType
	environment string
	prefix      string
	chars       *input.Chars // of the random characters
	random, sum int          // how many of them, and of the checksum
}

// longest is the most characters of a form, whatever a later release may allow.
const longest = 1 << 20

// forms returns the forms of the type: one for each environment that its prefix
// names, else one for the default. No secret has the length of a type that is not valid.
func (t *KeyType) forms() []form {
	if n := t.Len(); n < 0 || n > longest {
		return nil
	}
	if !strings.Contains(t.Prefix, environmentPlaceholder) {
		return []form{t.form(t.Environment())}
	}
	out := make([]form, len(t.Environments))
	for i, e := range t.Environments {
		out[i] = t.form(e)
	}
	return out
}

func (t *KeyType) form(environment string) form {
	return form{t, environment, t.PrefixIn(environment), t.Alphabet.set(), t.Len(), t.Checksum.Len()}
}

// cut returns what follows the prefix in secret, if it is as long as it must be.
func (f *form) cut(secret string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(secret, f.prefix)
	return rest, ok && len(rest) == f.random+f.sum
}

// match reports whether secret is of this form.
func (f *form) match(secret string) bool {
	rest, ok := f.cut(secret)
	return ok && all(rest[:f.random], f.chars) && f.of.Checksum.fits(rest)
}

func all(s string, of *input.Chars) bool {
	for i := range len(s) {
		if !of[s[i]] {
			return false
		}
	}
	return true
}

// certainPrefix is how long a prefix is that chance does not write.
const certainPrefix = 3

// find returns where the first secret of this form in text begins and ends, in
// bytes. A certain prefix marks it also where other text is glued to it; else it must
// be a word of its own, as in Pattern. Without a prefix only its checksum marks it.
func (f *form) find(text string) (start, end int, ok bool) {
	if f.prefix == "" && f.sum == 0 {
		return 0, 0, false
	}
	url := f.of.Alphabet == Base64URL
	glued := !url || f.sum > 0
	n := len(f.prefix) + f.random + f.sum
	for i := 0; i+n <= len(text); i++ {
		skip := strings.Index(text[i:], f.prefix)
		if skip < 0 {
			break
		}
		if i += skip; i+n > len(text) {
			break
		}
		if !glued || len(f.prefix) < certainPrefix {
			if i > 0 && input.Alnum(text[i-1]) || i+n < len(text) && (input.Alnum(text[i+n]) || url && strings.IndexByte("-_", text[i+n]) >= 0) {
				continue
			}
		}
		if f.written(text[i+len(f.prefix) : i+n]) {
			return i, i + n, true
		}
	}
	return 0, 0, false
}

// written reports whether rest, which follows the prefix, is of the characters of
// this form. A certain prefix marks also a secret with a mistyped checksum.
func (f *form) written(rest string) bool {
	if !all(rest[:f.random], f.chars) || !all(rest[f.random:], base62Chars) {
		return false
	}
	return len(f.prefix) >= certainPrefix || f.of.Checksum.fits(rest)
}
