package commands

import (
	"encoding/base64"
	"encoding/hex"
	"regexp"
	"strings"

	"github.com/keytrail/keytrail/events"
)

// ParseDigest reads a digest as people write it: 64 hexadecimal digits in either
// case, perhaps after "sha256:".
func ParseDigest(s string) (d events.Digest, ok bool) {
	s = strings.TrimPrefix(s, "sha256:")
	if len(s) != hex.EncodedLen(len(d)) {
		return d, false
	}
	_, err := hex.Decode(d[:], []byte(s))
	return d, err == nil && !d.IsZero()
}

// noSecrets are what tools write that hashed no secret.
var noSecrets = map[events.Digest]string{
	events.NewSecret("").Digest():     "an empty text",
	events.NewSecret("\n").Digest():   "an empty line",
	events.NewSecret("\r\n").Digest(): "an empty line",
	events.NewSecret("null").Digest(): "the word null",
}

const wantDigest = "want the SHA-256 of the secret, as 64 hexadecimal digits"

// DigestFault says why s is no digest to import, "" if it is one. It names the form
// of what it is where it can be told, and repeats nothing of it: it may be a secret
// in the wrong place.
func DigestFault(s string) string {
	if d, ok := ParseDigest(s); ok {
		if what := noSecrets[d]; what != "" {
			return "this is the SHA-256 of " + what + ", not of a secret"
		}
		return ""
	}
	switch form := digestForm(s); {
	case s == "":
		return wantDigest
	case form != "":
		return "this looks like " + form + ": " + wantDigest
	}
	return wantDigest
}

// hashes are the marks of hashes whose secret nobody can look up: each is salted,
// so that one secret has many of them.
var hashes = []struct{ prefix, name string }{
	{"$2a$", "a bcrypt hash"}, {"$2b$", "a bcrypt hash"}, {"$2x$", "a bcrypt hash"}, {"$2y$", "a bcrypt hash"}, {"$2$", "a bcrypt hash"},
	{"$argon2", "an Argon2 hash"}, {"argon2", "an Argon2 hash"},
	{"$scrypt", "a scrypt hash"}, {"scrypt", "a scrypt hash"}, {"$7$", "a scrypt hash"}, {"$y$", "a yescrypt hash"}, {"$gy$", "a yescrypt hash"},
	{"$pbkdf2", "a PBKDF2 hash"}, {"pbkdf2", "a PBKDF2 hash"}, {"bcrypt", "a bcrypt hash"},
	{"$1$", "a salted MD5 of crypt"}, {"$apr1$", "a salted MD5 of crypt"}, {"$5$", "a salted SHA-256 of crypt"}, {"$6$", "a salted SHA-512 of crypt"},
	{"{", "a password hash of LDAP"},
}

// hexLengths are the lengths of other digests in hexadecimal digits.
var hexLengths = map[int]string{8: "a CRC-32", 32: "an MD5", 40: "a SHA-1", 56: "a SHA-224", 96: "a SHA-384", 128: "a SHA-512"}

var (
	hexDigits  = regexp.MustCompile(`^[0-9A-Fa-f]+$`)
	sha256sums = regexp.MustCompile(`^\\?[0-9A-Fa-f]{64}[ \t]`)
	colons     = regexp.MustCompile(`^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2})+$`)
	algorithm  = regexp.MustCompile(`(?i)^sha-?256[:=$-]`)
)

// digestForm names the form of what stands where a digest belongs, "" if it is
// none that is known.
func digestForm(s string) string {
	for _, h := range hashes {
		if strings.HasPrefix(strings.ToLower(s), h.prefix) {
			return h.name + ", which holds a salt and cannot be looked up"
		}
	}
	if rest := algorithm.ReplaceAllString(s, ""); rest != s {
		if form := digestForm(rest); form != "" {
			return form
		}
		if _, ok := ParseDigest(rest); ok {
			return "a digest after another mark than sha256:"
		}
	}
	bare := strings.TrimPrefix(strings.TrimPrefix(s, "0x"), "0X")
	switch {
	case hexDigits.MatchString(bare) && hexLengths[len(bare)] != "":
		return hexLengths[len(bare)]
	case hexDigits.MatchString(bare) && bare != s && len(bare) == 64:
		return "a digest after 0x"
	case strings.Trim(s, "0") == "" && len(s) == 64:
		return "a digest that was never filled in"
	case sha256sums.MatchString(s):
		return "a line of sha256sum, which goes on after the digits"
	case colons.MatchString(s):
		return "a digest with colons between its bytes"
	case strings.TrimSpace(s) != s:
		if _, ok := ParseDigest(strings.TrimSpace(s)); ok {
			return "a digest with white space around it"
		}
	}
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if b, err := enc.DecodeString(s); err == nil && len(b) == len(events.Digest{}) && !hexDigits.MatchString(s) {
			return "base64 of 32 bytes"
		}
	}
	return ""
}
