package tree

import (
	"crypto/ed25519"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"
)

// Note returns a signer of other texts than checkpoints (C2SP signed-note), with the
// log's Ed25519 key under the name origin + suffix. A text must not begin as a
// checkpoint does, with the origin.
func (s *Signer) Note(suffix string) note.Signer {
	return noteKey{vkey: newVKey(s.origin+suffix, algEd25519, s.ed25519.Public().(ed25519.PublicKey)), sign: func(text []byte) ([]byte, error) {
		return s.ed25519.Sign(nil, text, ed25519Options)
	}}
}

// NoteVKey returns the verifier key of what Note(suffix) signs.
func (s *Signer) NoteVKey(suffix string) string {
	return newVKey(s.origin+suffix, algEd25519, s.ed25519.Public().(ed25519.PublicKey)).String()
}

// NoteVerifier verifies what Signer.Note(suffix) signs. key is NoteVKey(suffix), or
// the log's Ed25519 verifier key.
func NoteVerifier(key, suffix string) (note.Verifier, error) {
	k, err := parseVKey(key)
	if err != nil {
		return nil, err
	}
	if k.algorithm() != algEd25519 || len(k.public()) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("verifier key of the type %s: want the ed25519 one", k.algorithm())
	}
	k.name = strings.TrimSuffix(k.name, suffix) + suffix
	return noteKey{vkey: k, verify: func(text, sig []byte) bool { return ed25519.Verify(k.public(), text, sig) }}, nil
}
