package tree

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Origin returns the origin of the log with this id: the first line of its
// checkpoints, and the name of the keys that sign them. It is unique because the
// id is; it claims no domain.
func Origin(logID string) string { return "keytrail/log/" + logID }

// Checkpoint is what a verified checkpoint says.
type Checkpoint struct {
	Head
	Time time.Time // when it was signed, by the signer's clock, in whole seconds
}

// maxCheckpoint bounds the length of a checkpoint, in bytes: 16 signatures of
// 5,000 bytes, as C2SP signed-note asks for, fit in base64.
const maxCheckpoint = 128 << 10

// maxOrigin is the length of the longest origin, in bytes (C2SP tlog-cosignature).
const maxOrigin = 255

// checkOrigin checks the rules for origins and key names (C2SP tlog-checkpoint,
// signed-note, tlog-cosignature).
func checkOrigin(s string) error {
	bad := func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == '+' }
	if s == "" || len(s) > maxOrigin || !utf8.ValidString(s) || strings.ContainsFunc(s, bad) {
		return fmt.Errorf("origin %q: want 1 to %d bytes of UTF-8 without spaces, control characters and '+'", s, maxOrigin)
	}
	return nil
}

// text returns the note text of a checkpoint (C2SP tlog-checkpoint): origin, size
// and root, a line each.
func (h Head) text() []byte {
	b := append([]byte(h.Origin), '\n')
	b = strconv.AppendUint(b, h.Size, 10)
	b = append(b, '\n')
	b = base64.StdEncoding.AppendEncode(b, h.Root[:])
	return append(b, '\n')
}

// check refuses a head that no checkpoint can state.
func (h Head) check() error {
	if err := checkOrigin(h.Origin); err != nil {
		return err
	}
	if h.Size >= MaxSize {
		return fmt.Errorf("size %d: want less than %d", h.Size, MaxSize)
	}
	if h.Size == 0 && h.Root != EmptyRoot() {
		return errors.New("root: that of size 0 is the SHA-256 of nothing")
	}
	return nil
}

// parseHead is the inverse of text. It refuses extension lines: C2SP
// tlog-checkpoint advises against them, and the ML-DSA-44 signature does not cover
// them.
func parseHead(text []byte) (Head, error) {
	lines := strings.Split(string(text), "\n")
	if len(lines) != 4 || lines[3] != "" {
		return Head{}, errors.New("checkpoint: want three lines before the signatures: origin, size and root")
	}
	size, err := strconv.ParseUint(lines[1], 10, 64)
	if err != nil || strconv.FormatUint(size, 10) != lines[1] {
		return Head{}, errors.New("checkpoint: want as second line the size: a decimal number without leading zeroes")
	}
	root, err := parseHash(lines[2])
	if err != nil {
		return Head{}, fmt.Errorf("checkpoint: root: %w", err)
	}
	h := Head{Origin: lines[0], Size: size, Root: root}
	if err := h.check(); err != nil {
		return Head{}, fmt.Errorf("checkpoint: %w", err)
	}
	return h, nil
}

// parseHash reads what Hash prints, and nothing else.
func parseHash(s string) (Hash, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != tlog.HashSize || base64.StdEncoding.EncodeToString(b) != s {
		return Hash{}, errors.New("want 32 bytes in base64")
	}
	return Hash(b), nil
}

// Sign returns the checkpoint of a head, signed with both keys (C2SP
// tlog-checkpoint, signed-note). Time is the moment of signing; the ML-DSA-44
// signature covers it in whole seconds, the Ed25519 signature does not.
//
// A log must never sign two heads that are not of one history. Sign cannot check
// that: the caller proves the head against the last checkpoint, and replaces that
// checkpoint by a compare-and-set before it publishes the new one.
func (s *Signer) Sign(head Head, at time.Time) ([]byte, error) {
	return s.sign(head, at, func(msg []byte) ([]byte, error) { return s.mldsa.Sign(nil, msg, nil) })
}

func (s *Signer) sign(head Head, at time.Time, mldsa func(msg []byte) ([]byte, error)) ([]byte, error) {
	if head.Origin != s.origin {
		return nil, fmt.Errorf("checkpoint: the head is of %q, the keys sign for %q", head.Origin, s.origin)
	}
	if err := head.check(); err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	seconds := at.Unix()
	if seconds <= 0 {
		return nil, errors.New("checkpoint: want a time after 1970")
	}
	ed := noteKey{vkey: s.keys.ed25519, sign: func(text []byte) ([]byte, error) {
		return s.ed25519.Sign(nil, text, ed25519Options)
	}}
	pq := noteKey{vkey: s.keys.mldsa44, sign: func([]byte) ([]byte, error) {
		sig, err := mldsa(cosigned(s.origin, uint64(seconds), head))
		return append(binary.BigEndian.AppendUint64(nil, uint64(seconds)), sig...), err
	}}
	return note.Sign(&note.Note{Text: string(head.text())}, ed, pq)
}

// cosigned returns what an ML-DSA-44 cosignature of a checkpoint signs: the
// structure cosigned_message of C2SP tlog-cosignature, in the encoding of RFC
// 8446, section 3.
func cosigned(cosigner string, seconds uint64, head Head) []byte {
	b := []byte("subtree/v1\n\x00")
	b = append(append(b, byte(len(cosigner))), cosigner...)
	b = binary.BigEndian.AppendUint64(b, seconds)
	b = append(append(b, byte(len(head.Origin))), head.Origin...)
	b = binary.BigEndian.AppendUint64(b, 0) // start
	b = binary.BigEndian.AppendUint64(b, head.Size)
	return append(b, head.Root[:]...)
}

// Open verifies a checkpoint. It accepts only one of the verifier's log, with one
// valid signature of each of the two keys (T4).
// Signatures of other keys, as of witnesses, are ignored, as C2SP signed-note
// asks. A line that is there twice is refused, and so is base64 that Sign would not
// write.
func (v *Verifier) Open(checkpoint []byte) (Checkpoint, error) {
	if len(checkpoint) > maxCheckpoint {
		return Checkpoint{}, fmt.Errorf("checkpoint: %d bytes long, want %d at most", len(checkpoint), maxCheckpoint)
	}
	var seconds uint64
	ed := noteKey{vkey: v.keys.ed25519, verify: v.keys.verifyEd25519}
	pq := noteKey{vkey: v.keys.mldsa44, verify: func(text, sig []byte) bool {
		head, err := parseHead(text)
		if err != nil || len(sig) < 8 {
			return false
		}
		seconds = binary.BigEndian.Uint64(sig)
		return seconds < 1<<63 && v.keys.verifyMLDSA44(cosigned(v.origin, seconds, head), sig[8:])
	}}
	n, err := note.Open(checkpoint, note.VerifierList(ed, pq))
	if unverified, ok := errors.AsType[*note.UnverifiedNoteError](err); ok {
		n = unverified.Note // says below what is missing
	} else if err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w", err)
	}
	head, err := parseHead([]byte(n.Text))
	if err != nil {
		return Checkpoint{}, err
	}
	if head.Origin != v.origin {
		return Checkpoint{}, fmt.Errorf("checkpoint: it is of the log %q, want %q", head.Origin, v.origin)
	}
	for _, key := range []noteKey{ed, pq} {
		if !slices.ContainsFunc(n.Sigs, func(s note.Signature) bool { return s.Hash == key.KeyHash() }) {
			return Checkpoint{}, fmt.Errorf("checkpoint: it has no signature of the %s key %s+%08x; want one of each key", key.vkey.algorithm(), key.Name(), key.KeyHash())
		}
	}
	// note.Open leaves out repeated lines and does not ask for canonical base64.
	sigs := slices.Concat(n.Sigs, n.UnverifiedSigs)
	if bytes.Count(checkpoint[len(n.Text)+1:], []byte("\n")) != len(sigs) {
		return Checkpoint{}, errors.New("checkpoint: a key has more than one signature line")
	}
	for _, s := range sigs {
		if _, err := base64.StdEncoding.Strict().DecodeString(s.Base64); err != nil {
			return Checkpoint{}, fmt.Errorf("checkpoint: signature of %s+%08x: want canonical base64", s.Name, s.Hash)
		}
	}
	return Checkpoint{Head: head, Time: time.Unix(int64(seconds), 0).UTC()}, nil
}

// ReadHead returns the head that a checkpoint states, and verifies no signature: for
// a party that can prove the head from a tree of its own.
func ReadHead(checkpoint []byte) (Head, error) {
	if len(checkpoint) > maxCheckpoint {
		return Head{}, fmt.Errorf("checkpoint: %d bytes long, want %d at most", len(checkpoint), maxCheckpoint)
	}
	text, _, ok := bytes.Cut(checkpoint, []byte("\n\n"))
	if !ok {
		return Head{}, errors.New("checkpoint: want three lines, an empty line, and signatures")
	}
	return parseHead(append(bytes.Clone(text), '\n'))
}
