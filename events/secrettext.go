package events

import (
	"iter"

	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// MinSecret and MaxSecret bound the length of any secret, in characters. Key types
// of our own have 21 or more.
const (
	MinSecret = input.MaxWord + 1
	MaxSecret = 256
)

// WellFormed reports whether s has the form of secrets in general: MinSecret to
// MaxSecret characters of visible ASCII. Only the secret of a key that was imported
// by its digest may have another, which nobody could see there. If it is shorter, it
// is not found in text, and if it is longer or has spaces in it, only where the text
// is nothing else.
func WellFormed(s string) bool {
	if len(s) < MinSecret || len(s) > MaxSecret {
		return false
	}
	for i := range len(s) {
		if !visible(s[i]) {
			return false
		}
	}
	return true
}

func visible(c byte) bool { return c-'!' <= '~'-'!' }

// SecretFinder finds secrets in text. The views of the log implement it.
type SecretFinder interface {
	// FindSecret returns where the first secret in text begins and ends, in bytes.
	FindSecret(text string) (start, end int, ok bool)
}

// HoldsSecret reports whether there is a secret in text.
func HoldsSecret(f SecretFinder, text string) bool {
	_, _, ok := f.FindSecret(text)
	return ok
}

// WithoutSecrets returns text with every secret in it replaced by "[secret]".
func WithoutSecrets(f SecretFinder, text string) string {
	start, end, ok := f.FindSecret(text)
	if !ok {
		return text
	}
	return text[:start] + Secret{}.String() + WithoutSecrets(f, text[end:])
}

// FindSecret returns where a secret in text begins and ends: what has the form of
// one of the key types, anywhere in it, or a word whose digest is known. A secret
// whose key type has no prefix, or that another system issued, has no form that
// would tell it from other text: it is found as a word by its digest alone, and
// not where letters or digits are glued to it.
func FindSecret(text string, rules iter.Seq[*keyspace.Compiled], known func(Digest) bool) (start, end int, ok bool) {
	if len(text) < MinSecret { // a word that short may be anything, as a tenant's name
		return 0, 0, false
	}
	if start, end, ok = findMarked(text, rules, known); ok {
		return start, end, true
	}
	for start := 0; start < len(text); {
		if !visible(text[start]) {
			start++
			continue
		}
		end := start + 1
		for end < len(text) && visible(text[end]) {
			end++
		}
		if i, j, ok := findKnown(text[start:end], known); ok {
			return start + i, start + j, true
		}
		start = end
	}
	return 0, 0, false
}

// IsSecret reports whether name is a secret, or holds one that has the form of a key
// type. It is FindSecret for names of which each verification has some: it does not
// look for other secrets among the words of the name, because to hash each word
// costs more than the decision. It looks up one digest at the most.
func IsSecret(name string, rules iter.Seq[*keyspace.Compiled], known func(Digest) bool) bool {
	if len(name) < MinSecret {
		return false
	}
	_, _, ok := findMarked(name, rules, known)
	return ok
}

// findMarked finds the text itself, or what has the form of a key type in it.
func findMarked(text string, rules iter.Seq[*keyspace.Compiled], known func(Digest) bool) (start, end int, ok bool) {
	if known(NewSecret(text).Digest()) {
		return 0, len(text), true // also one of an imported key, with spaces in it
	}
	for c := range rules {
		if start, end, ok = c.Find(text); ok {
			return start, end, true
		}
	}
	return 0, 0, false
}

// maxEdges bounds how many edges one candidate of findKnown spans, and so how
// often a text is hashed: some 4 times for each character at most.
const maxEdges = 16

// findKnown returns the part of run, visible ASCII without spaces, whose digest is
// known: run itself, or a part that begins and ends at the edge of a word. An edge
// is where a letter or digit does not follow upon another.
func findKnown(run string, known func(Digest) bool) (start, end int, ok bool) {
	if len(run) < MinSecret {
		return 0, 0, false
	}
	if len(run) <= MaxSecret && known(NewSecret(run).Digest()) {
		return 0, len(run), true
	}
	edge := func(i int) bool {
		return i == 0 || i == len(run) || !input.Alnum(run[i-1]) || !input.Alnum(run[i])
	}
	for i := 0; i+MinSecret <= len(run); i++ {
		if !edge(i) {
			continue
		}
		edges := 0
		for j := i + 1; j <= len(run) && j-i <= MaxSecret && edges < maxEdges; j++ {
			if !edge(j) {
				continue
			}
			edges++
			if j-i >= MinSecret && j-i < len(run) && known(NewSecret(run[i:j]).Digest()) {
				return i, j, true
			}
		}
	}
	return 0, 0, false
}
