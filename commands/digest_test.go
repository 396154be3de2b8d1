package commands_test

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/commands"
)

// TestDigestFaultNamesTheForm: what is no digest to import is called by its name,
// and nothing of it is repeated.
func TestDigestFaultNamesTheForm(t *testing.T) {
	const secret = "sk_live_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef"
	sum := sha256.Sum256([]byte(secret))
	digits := hex.EncodeToString(sum[:])
	sum5, sum1, sum512 := md5.Sum([]byte(secret)), sha1.Sum([]byte(secret)), sha512.Sum512([]byte(secret))
	for s, want := range map[string]string{
		digits:                              "",
		"sha256:" + strings.ToUpper(digits): "",
		base64.StdEncoding.EncodeToString(sum[:]):                         "base64 of 32 bytes",
		base64.RawURLEncoding.EncodeToString(sum[:]):                      "base64 of 32 bytes",
		"sha256-" + base64.StdEncoding.EncodeToString(sum[:]):             "base64 of 32 bytes",
		"$2b$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy":    "a bcrypt hash",
		"$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$RdescudvJCsgt3ub+b4d": "an Argon2 hash",
		"pbkdf2_sha256$600000$salt$aGFzaA==":                              "a PBKDF2 hash",
		"$6$rounds=5000$salt$hash":                                        "a salted SHA-512 of crypt",
		"{SSHA256}c2FsdGVk":                                               "a password hash of LDAP",
		hex.EncodeToString(sum5[:]):                                       "an MD5",
		"0x" + hex.EncodeToString(sum1[:]):                                "a SHA-1",
		hex.EncodeToString(sum512[:]):                                     "a SHA-512",
		"SHA256:" + digits:                                                "another mark than sha256:",
		"sha256=" + digits:                                                "another mark than sha256:",
		"0x" + digits:                                                     "a digest after 0x",
		digits + "  -":                                                    "a line of sha256sum",
		digits + "\n":                                                     "white space around it",
		strings.TrimRight(fmt.Sprintf("% X", sum), " "):                   wantSHA256,
		strings.ReplaceAll(fmt.Sprintf("% X", sum), " ", ":"):             "colons between its bytes",
		strings.Repeat("0", 64):                                           "never filled in",
		hexOf(""):                                                         "of an empty text",
		hexOf("\n"):                                                       "of an empty line",
		hexOf("null"):                                                     "of the word null",
		"":                                                                wantSHA256,
		secret:                                                            wantSHA256,
		digits[:63]:                                                       wantSHA256,
	} {
		got := commands.DigestFault(s)
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%d characters: %q, want %q", len(s), got, want)
		}
		if len(s) > 16 && strings.Contains(got, s[:16]) {
			t.Errorf("what stood for a digest is repeated: %q", got)
		}
		if _, ok := commands.ParseDigest(s); got == "" && !ok || got != "" && want != "" && !strings.Contains(want, "of ") && ok {
			t.Errorf("%q disagrees with ParseDigest", got)
		}
	}
}

const wantSHA256 = "want the SHA-256 of the secret, as 64 hexadecimal digits"

func FuzzDigestFault(f *testing.F) {
	for _, s := range []string{"", "sha256:", "$2b$", "0x00", strings.Repeat("a", 64), strings.Repeat("A", 43), "SHA256:SHA256:" + strings.Repeat("0", 64)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		fault := commands.DigestFault(s)
		if _, ok := commands.ParseDigest(s); !ok && fault == "" {
			t.Fatalf("%q is a digest and none", s)
		}
		if len(s) >= 20 && strings.Contains(fault, s) {
			t.Fatalf("%q is repeated: %s", s, fault)
		}
	})
}
