package tree

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// Hash is a SHA-256 hash of a leaf, a node or a root. It prints as base64, as the
// C2SP texts do.
type Hash = tlog.Hash

// MaxSize is the number of leaves that a tree stays below. At a million events a
// second it is reached after 2,000 years.
const MaxSize uint64 = 1 << 56

// MaxSubject is the length of the longest subject in an entry, in bytes: that of
// a line of the NATS protocol (max_control_line).
const MaxSubject = 4096

// entryV1 is the first line of an entry.
const entryV1 = "urn:keytrail:entry:v1\n"

// maxEntry is the length of the longest entry, in bytes. C2SP tlog-tiles allows
// 65,535.
const maxEntry = len(entryV1) + MaxSubject + 1 + 2*sha256.Size + 1

// Entry returns the entry of one event: what is hashed into its leaf and published
// in entry bundles (C2SP tlog-tiles). It is three lines, each ended by a line feed:
//
//	urn:keytrail:entry:v1
//	kt.life.acme.t_1.key.key_01JZ0000000000000000000000
//	9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
//
// The second line is the subject under which the log holds the document, the third
// the SHA-256 of the document's bytes as they are stored, in lower-case hex. The
// entry is short whatever the document holds, and it reveals nothing of the document
// to a reader who does not have it.
//
// Different subjects or documents have different entries, even if a log cannot hold
// the subject because it is empty, has spaces or is longer than MaxSubject.
// ParseEntry refuses the entry of such a subject.
func Entry(subject string, document [sha256.Size]byte) []byte {
	return AppendEntry(make([]byte, 0, len(entryV1)+len(subject)+1+2*sha256.Size+1), subject, document)
}

// AppendEntry appends Entry(subject, document) to dst.
func AppendEntry(dst []byte, subject string, document [sha256.Size]byte) []byte {
	dst = append(dst, entryV1...)
	dst = append(dst, subject...)
	dst = append(dst, '\n')
	dst = hex.AppendEncode(dst, document[:])
	return append(dst, '\n')
}

// ParseEntry is the inverse of Entry for every subject that a log can hold.
func ParseEntry(entry []byte) (subject string, document [sha256.Size]byte, err error) {
	if len(entry) > maxEntry {
		return "", document, fmt.Errorf("entry: %d bytes long, want %d at most", len(entry), maxEntry)
	}
	rest, ok := strings.CutPrefix(string(entry), entryV1)
	if !ok {
		return "", document, fmt.Errorf("entry: the first line is not %q", strings.TrimSuffix(entryV1, "\n"))
	}
	subject, rest, ok = strings.Cut(rest, "\n")
	if !ok || !validSubject(subject) {
		return "", document, fmt.Errorf("entry: the second line is no subject: want 1 to %d bytes without spaces and control characters", MaxSubject)
	}
	digits, ok := strings.CutSuffix(rest, "\n")
	b, err := hex.DecodeString(digits)
	if !ok || err != nil || len(b) != sha256.Size || hex.EncodeToString(b) != digits {
		return "", document, fmt.Errorf("entry: want as third and last line the SHA-256 of the document: 64 digits of lower-case hex")
	}
	return subject, [sha256.Size]byte(b), nil
}

func validSubject(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return s != ""
}

// LeafHash returns the hash of the leaf of one event:
// SHA-256(0x00 || entry) (RFC 6962, section 2.1).
func LeafHash(subject string, document [sha256.Size]byte) Hash {
	var buf [512]byte // the subjects of Keytrail fit: no allocation
	return Hash(sha256.Sum256(AppendEntry(append(buf[:0], 0), subject, document)))
}

// EntryHash returns the hash of the leaf with this entry.
func EntryHash(entry []byte) Hash { return tlog.RecordHash(entry) }
