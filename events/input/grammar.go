package input

// Grammar is a set of words: of which characters the first is, of which the others,
// and how many there are at most. Sets of characters are tables of bytes, not regular
// expressions: they are asked of each name of each batch of uses.
type Grammar struct {
	first, rest Chars
	max         int
}

// NewGrammar returns the words of at most max characters whose first is one of
// first and whose others are of rest.
func NewGrammar(first, rest string, max int) *Grammar {
	return &Grammar{CharsOf(first), CharsOf(rest), max}
}

// Match reports whether s is a word of the grammar. The empty text never is.
func (g *Grammar) Match(s string) bool {
	if s == "" || len(s) > g.max || !g.first[s[0]] {
		return false
	}
	for i := 1; i < len(s); i++ {
		if !g.rest[s[i]] {
			return false
		}
	}
	return true
}

// Chars is a set of bytes.
type Chars [256]bool

// CharsOf returns the set of the bytes of s.
func CharsOf(s string) (c Chars) {
	for i := 0; i < len(s); i++ {
		c[s[i]] = true
	}
	return c
}

// The characters that the grammars of names are made of.
const (
	Lower  = "abcdefghijklmnopqrstuvwxyz"
	Upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	Digits = "0123456789"
)

var word = NewGrammar(Lower, Lower+Digits+"_", 32)

// IsWord reports whether s can name a kind, a type or a plan: a lower-case letter,
// then lower-case letters, digits or '_', 32 characters at most.
func IsWord(s string) bool { return word.Match(s) }

// Alnum reports whether c is an ASCII letter or digit.
func Alnum(c byte) bool {
	return c-'0' <= 9 || c|0x20 >= 'a' && c|0x20 <= 'z'
}
