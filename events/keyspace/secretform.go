package keyspace

import (
	"hash/crc32"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/keytrail/keytrail/events/input"
)

// KeyType is one kind of key: what its secret looks like and what it may hold.
//
// A secret is the prefix, then Len random characters of the alphabet, then the
// checksum if there is one. Keys that another system issued may look different:
// look a key up first, and check the form of its secret only on a miss. Exception:
// Compiled.WrongChecksum.
type KeyType struct {
	Name         string   `json:"name"`                   // secret, publishable, ...
	Environments []string `json:"environments,omitempty"` // live, test, ...: told to the gateway; the first is the default
	Prefix       string   `json:"prefix,omitzero"`        // readable start of the secret; {environment} stands for the key's environment
	Alphabet     Alphabet `json:"alphabet,omitzero"`      // default base62
	Length       int      `json:"length,omitzero"`        // random characters after the prefix; default 32
	Checksum     Checksum `json:"checksum,omitzero"`      // default none
	Defaults     []string `json:"defaults,omitempty"`     // scopes given when none are asked for
	Ceiling      []string `json:"ceiling,omitempty"`      // scopes it may hold at most, one at least; absent = all
	Description  string   `json:"description,omitempty"`  // for people
}

// Alphabet is the closed set of alphabets of the random part of a secret.
type Alphabet string

// The alphabets.
const (
	Base62    Alphabet = "base62"
	Hex       Alphabet = "hex"
	Base58    Alphabet = "base58"    // Bitcoin's: no 0, O, I, l
	Base32    Alphabet = "base32"    // RFC 4648 section 6, lower case
	Base64URL Alphabet = "base64url" // RFC 4648 section 5
)

const base62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

// Chars returns the alphabet's characters, "" when there is no such alphabet.
func (a Alphabet) Chars() string {
	switch a {
	case "", Base62:
		return base62
	case Hex:
		return "0123456789abcdef"
	case Base58:
		return "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
	case Base32:
		return "abcdefghijklmnopqrstuvwxyz234567"
	case Base64URL:
		return "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	}
	return ""
}

var base62Chars, hexChars, base58Chars, base32Chars, base64URLChars = chars(Base62), chars(Hex), chars(Base58), chars(Base32), chars(Base64URL)

func chars(a Alphabet) *input.Chars {
	set := input.CharsOf(a.Chars())
	return &set
}

// set returns the alphabet's characters as a set, which is empty when there is no
// such alphabet. It is shared: do not modify.
func (a Alphabet) set() *input.Chars {
	switch a {
	case "", Base62:
		return base62Chars
	case Hex:
		return hexChars
	case Base58:
		return base58Chars
	case Base32:
		return base32Chars
	case Base64URL:
		return base64URLChars
	}
	return new(input.Chars)
}

// minLength returns how many characters hold MinSecretBits.
func (a Alphabet) minLength() int {
	switch len(a.Chars()) {
	case 16:
		return 30
	case 32:
		return 24
	case 64:
		return 20
	}
	return 21 // base62, base58
}

// class returns the alphabet as a character class of a regular expression.
func (a Alphabet) class() string {
	switch a {
	case Hex:
		return "[0-9a-f]"
	case Base58:
		return "[1-9A-HJ-NP-Za-km-z]"
	case Base32:
		return "[a-z2-7]"
	case Base64URL:
		return "[A-Za-z0-9_-]"
	}
	return "[0-9A-Za-z]"
}

// Checksum is the closed set of checksums at the end of a secret.
type Checksum string

// CRC32 is GitHub's scheme: the CRC-32 (IEEE) of the random characters, in six
// base62 digits, zeros in front. It tells a typing error or an invented secret
// without a look-up; it is no proof of anything.
const CRC32 Checksum = "crc32"

const checksumLen = 6

// Len returns the number of checksum characters.
func (c Checksum) Len() int {
	if c == CRC32 {
		return checksumLen
	}
	return 0
}

// Append appends the checksum of the random characters.
func (c Checksum) Append(dst []byte, random []byte) []byte {
	if c != CRC32 {
		return dst
	}
	sum := crc62(random)
	return append(dst, sum[:]...)
}

// crc62 returns the CRC-32 of s in base62. It goes by crc32's table itself:
// crc32.ChecksumIEEE lets its argument escape, and fits must not allocate.
func crc62[T string | []byte](s T) (digits [checksumLen]byte) {
	n := ^uint32(0)
	for i := range len(s) {
		n = crc32.IEEETable[byte(n)^s[i]] ^ n>>8
	}
	n = ^n
	for i := range slices.Backward(digits[:]) {
		digits[i] = base62[n%62]
		n /= 62
	}
	return digits
}

// fits reports whether rest ends with the checksum of what is before.
func (c Checksum) fits(rest string) bool {
	if c == "" {
		return true
	}
	random := len(rest) - checksumLen
	if random < 0 {
		return false
	}
	sum := crc62(rest[:random])
	return string(sum[:]) == rest[random:]
}

// DefaultSecretLength is the number of random characters when a key type names
// none: 190 bits in base62. MinSecretBits is the entropy floor of any type.
const (
	DefaultSecretLength = 32
	MinSecretBits       = 120

	maxLength = 200
)

// Len returns the number of random characters, with the default applied.
func (t *KeyType) Len() int {
	if t.Length == 0 {
		return DefaultSecretLength
	}
	return t.Length
}

// Environment returns the environment of a key whose request names none, ""
// when the type has none.
func (t *KeyType) Environment() string {
	if len(t.Environments) == 0 {
		return ""
	}
	return t.Environments[0]
}

// environments returns those a key of this type may have: at least "".
func (t *KeyType) environments() []string {
	if len(t.Environments) == 0 {
		return []string{""}
	}
	return t.Environments
}

const environmentPlaceholder = "{environment}"

// PrefixIn returns the prefix of a key in the environment.
func (t *KeyType) PrefixIn(environment string) string {
	return strings.Replace(t.Prefix, environmentPlaceholder, environment, 1)
}

// Match reports whether secret has the form of this type: prefix, length,
// alphabet and checksum; and the environment that its prefix names, the default
// where it names none.
func (t *KeyType) Match(secret string) (environment string, ok bool) {
	for _, f := range t.forms() {
		if f.match(secret) {
			return f.environment, true
		}
	}
	return "", false
}

// overlaps reports whether a secret of o can have the form of t.
func (t *KeyType) overlaps(o *KeyType) bool {
	for _, mine := range t.environments() {
		for _, theirs := range o.environments() {
			p, q := t.PrefixIn(mine), o.PrefixIn(theirs)
			chars := t.Alphabet.Chars()
			if t.Checksum != "" {
				chars += base62
			}
			middle, ok := strings.CutPrefix(q, p)
			if ok && len(p)+t.Len()+t.Checksum.Len() == len(q)+o.Len()+o.Checksum.Len() &&
				strings.Trim(middle, chars) == "" {
				return true
			}
		}
	}
	return false
}

// Hint returns the readable start of a secret, safe to show: the prefix and four
// more characters of one that has the type's form; of another at most eight
// characters and never more than a quarter.
func (t *KeyType) Hint(secret string) string {
	for _, f := range t.forms() {
		if rest, ok := f.cut(secret); ok {
			return secret[:len(secret)-len(rest)+4]
		}
	}
	return foreignHint(secret)
}

// foreignHint is the hint of a secret whose form is not known.
func foreignHint(secret string) string { return secret[:min(8, len(secret)/4)] }

// Pattern returns a regular expression that finds secrets of this type in text,
// for secret scanners (RE2 and PCRE alike), "" when nothing but randomness marks
// them: without a prefix anything could be one. The secret is what the
// expression matches as a whole.
func (t *KeyType) Pattern() string {
	if t.Prefix == "" {
		return ""
	}
	before, after, templated := strings.Cut(t.Prefix, environmentPlaceholder)
	p := regexp.QuoteMeta(before)
	if templated {
		// The first that fits is taken: of two that start alike, the longer one.
		names := slices.SortedStableFunc(slices.Values(t.Environments), func(a, b string) int { return len(b) - len(a) })
		if len(names) == 1 {
			p += names[0]
		} else {
			p += "(?:" + strings.Join(names, "|") + ")"
		}
		p += regexp.QuoteMeta(after)
	}
	if t.Prefix[0] != '-' {
		p = `\b` + p
	}
	p += t.Alphabet.class() + "{" + strconv.Itoa(t.Len()) + "}"
	if t.Checksum != "" {
		p += "[0-9A-Za-z]{" + strconv.Itoa(checksumLen) + "}"
	}
	if t.Alphabet == Base64URL && t.Checksum == "" {
		return p // it may end in '-', after which there is no word boundary
	}
	return p + `\b`
}

// TypeOf returns the key type whose form secret has, and the environment that
// its prefix names.
func (d *Definition) TypeOf(secret string) (t *KeyType, environment string, ok bool) {
	for i := range d.KeyTypes {
		if environment, ok = d.KeyTypes[i].Match(secret); ok {
			return &d.KeyTypes[i], environment, true
		}
	}
	return nil, "", false
}

// Hint is KeyType.Hint of the type whose form secret has, of whatever form it is.
func (d *Definition) Hint(secret string) string {
	if t, _, ok := d.TypeOf(secret); ok {
		return t.Hint(secret)
	}
	return foreignHint(secret)
}

// Reveals reports whether start is a secret of one of the key types, or the start
// of one with more than half of its random characters: who learns the digest could
// find the others by trying. Where several prefixes fit, the longest counts, so
// that a Hint never does.
func (d *Definition) Reveals(start string) bool {
	if _, _, whole := d.TypeOf(start); whole {
		return true
	}
	reveals, longest := false, -1
	for i := range d.KeyTypes {
		t := &d.KeyTypes[i]
		chars := t.Alphabet.Chars()
		if t.Checksum != "" {
			chars += base62
		}
		for _, e := range t.environments() {
			p := t.PrefixIn(e)
			rest, ok := strings.CutPrefix(start, p)
			if !ok || len(p) < longest {
				continue
			}
			most := len(rest) > t.Len()/2 && strings.Trim(rest, chars) == ""
			reveals = most || reveals && len(p) == longest
			longest = len(p)
		}
	}
	return reveals
}
