package tree

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/mldsa"
)

// algorithm is a signature type of C2SP signed-note.
type algorithm byte

// The two algorithms with which a checkpoint is signed. Public witnesses need
// Ed25519 (C2SP tlog-tiles). A quantum computer could forge it within the years
// that an audit record is kept, so ML-DSA-44 (FIPS 204) is required as well.
const (
	algEd25519 algorithm = 0x01
	algMLDSA44 algorithm = 0x06
)

// String returns the name that the key file uses.
func (a algorithm) String() string {
	switch a {
	case algEd25519:
		return "ed25519"
	case algMLDSA44:
		return "ml-dsa-44"
	}
	return fmt.Sprintf("%#02x", byte(a))
}

// vkey is a verifier key of C2SP signed-note: a name, and type || public key.
type vkey struct {
	name string
	key  string
}

func newVKey(name string, a algorithm, public []byte) vkey {
	return vkey{name, string(append([]byte{byte(a)}, public...))}
}

func (k vkey) algorithm() algorithm { return algorithm(k.key[0]) }
func (k vkey) public() []byte       { return []byte(k.key[1:]) }

// id is SHA-256(name || 0x0A || type || public key)[:4].
func (k vkey) id() uint32 {
	sum := sha256.Sum256([]byte(k.name + "\n" + k.key))
	return binary.BigEndian.Uint32(sum[:])
}

// String returns <name>+<id in hex>+<type and public key in base64>.
func (k vkey) String() string {
	return fmt.Sprintf("%s+%08x+%s", k.name, k.id(), base64.StdEncoding.EncodeToString([]byte(k.key)))
}

// parseVKey reads what String prints, and nothing else.
func parseVKey(s string) (vkey, error) {
	want := errors.New("verifier key: want <origin>+<8 digits of hex>+<base64>, as Keytrail prints it")
	parts := strings.Split(s, "+")
	if len(parts) < 3 || checkOrigin(parts[0]) != nil {
		return vkey{}, want
	}
	// The digits of base64 have a + too.
	b, err := base64.StdEncoding.Strict().DecodeString(strings.Join(parts[2:], "+"))
	if err != nil || len(b) == 0 {
		return vkey{}, want
	}
	k := vkey{parts[0], string(b)}
	if k.String() != s {
		return vkey{}, errors.New("verifier key: the id does not belong to name and key: it is damaged")
	}
	return k, nil
}

// keys are the public keys of a log.
type keys struct {
	ed25519, mldsa44 vkey
	mldsa            *mldsa.PublicKey
}

func newKeys(ed, pq vkey) (keys, error) {
	if len(ed.public()) != ed25519.PublicKeySize {
		return keys{}, fmt.Errorf("ed25519 verifier key: %d bytes, want %d", len(ed.public()), ed25519.PublicKeySize)
	}
	public, err := mldsa.NewPublicKey(mldsa.MLDSA44(), pq.public())
	if err != nil {
		return keys{}, fmt.Errorf("ml-dsa-44 verifier key: %w", err)
	}
	return keys{ed, pq, public}, nil
}

func (k keys) verifyEd25519(msg, sig []byte) bool {
	return ed25519.Verify(k.ed25519.public(), msg, sig)
}

func (k keys) verifyMLDSA44(msg, sig []byte) bool {
	return mldsa.Verify(k.mldsa, msg, sig, nil) == nil
}

// vkeys returns both as text, Ed25519 first.
func (k keys) vkeys() []string { return []string{k.ed25519.String(), k.mldsa44.String()} }

// noteKey is a key in the form that package note takes: a note.Signer if it can
// sign, a note.Verifier if it can verify.
type noteKey struct {
	vkey   vkey
	sign   func(text []byte) ([]byte, error)
	verify func(text, sig []byte) bool
}

func (k noteKey) Name() string                     { return k.vkey.name }
func (k noteKey) KeyHash() uint32                  { return k.vkey.id() }
func (k noteKey) Sign(text []byte) ([]byte, error) { return k.sign(text) }
func (k noteKey) Verify(text, sig []byte) bool     { return k.verify(text, sig) }

// ed25519Options ask for plain Ed25519 (RFC 8032).
const ed25519Options = crypto.Hash(0)

// Verifier checks the checkpoints of one log. It is safe for concurrent use.
type Verifier struct {
	origin string
	keys   keys
}

// NewVerifier makes a verifier of the two verifier keys of a log, in any order: one
// Ed25519 key (type 0x01) and one ML-DSA-44 key (type 0x06), both named as the
// log's origin. Every checkpoint must be signed with both.
func NewVerifier(vkeys ...string) (*Verifier, error) {
	if len(vkeys) != 2 {
		return nil, fmt.Errorf("%d verifier keys: want two of one log, ed25519 and ml-dsa-44", len(vkeys))
	}
	a, err := parseVKey(vkeys[0])
	if err != nil {
		return nil, err
	}
	b, err := parseVKey(vkeys[1])
	if err != nil {
		return nil, err
	}
	if a.algorithm() == algMLDSA44 {
		a, b = b, a
	}
	if a.algorithm() != algEd25519 || b.algorithm() != algMLDSA44 {
		return nil, fmt.Errorf("verifier keys of the types %s and %s: want one ed25519 and one ml-dsa-44", a.algorithm(), b.algorithm())
	}
	if a.name != b.name {
		return nil, fmt.Errorf("verifier keys of two logs, %q and %q: want both of one", a.name, b.name)
	}
	k, err := newKeys(a, b)
	if err != nil {
		return nil, err
	}
	return &Verifier{a.name, k}, nil
}

// Origin names the log.
func (v *Verifier) Origin() string { return v.origin }

// VKeys returns the two verifier keys, as NewVerifier takes them: Ed25519, then
// ML-DSA-44.
func (v *Verifier) VKeys() []string { return v.keys.vkeys() }

// Signer signs the checkpoints of one log. It is safe for concurrent use, and
// never prints its keys.
type Signer struct {
	origin  string
	keys    keys
	ed25519 ed25519.PrivateKey
	mldsa   *mldsa.PrivateKey
}

// keyFileV1 is the first line of a key file.
const keyFileV1 = "keytrail checkpoint keys v1"

// GenerateKeyFile draws the two keys with which a log signs its checkpoints, and
// returns the content of the file that keeps them. It is secret; the file wants
// mode 0600. It is three lines, each ended by a line feed:
//
//	keytrail checkpoint keys v1
//	PRIVATE+KEY+ed25519+<8 digits>+<32 bytes in base64>
//	PRIVATE+KEY+ml-dsa-44+<8 digits>+<32 bytes in base64>
//
// The bytes are the seed of RFC 8032 and that of FIPS 204; the digits are the start
// of the hex SHA-256 of type and public key, so a damaged file is noticed. The file
// does not name a log. A log that is restored from a backup gets another id; the
// same keys sign for it under its new origin.
func GenerateKeyFile() []byte {
	var seeds [2][32]byte
	rand.Read(seeds[0][:])
	rand.Read(seeds[1][:])
	return keyFile(seeds[0], seeds[1])
}

func keyFile(ed, pq [32]byte) []byte {
	b := []byte(keyFileV1 + "\n")
	for _, k := range []struct {
		a    algorithm
		seed [32]byte
	}{{algEd25519, ed}, {algMLDSA44, pq}} {
		sum := sha256.Sum256(append([]byte{byte(k.a)}, publicOf(k.a, k.seed)...))
		b = fmt.Appendf(b, "PRIVATE+KEY+%s+%08x+%s\n", k.a, sum[:4], base64.StdEncoding.EncodeToString(k.seed[:]))
	}
	return b
}

func publicOf(a algorithm, seed [32]byte) []byte {
	if a == algEd25519 {
		return ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey)
	}
	return mldsaKey(seed).PublicKey().Bytes()
}

// mldsaKey derives the key; every seed of 32 bytes is valid.
func mldsaKey(seed [32]byte) *mldsa.PrivateKey {
	k, err := mldsa.NewPrivateKey(mldsa.MLDSA44(), seed[:])
	if err != nil {
		panic(err)
	}
	return k
}

// NewSigner makes a signer for the log with this origin (see Origin) of the content
// of a key file; the last line feed may be missing. No error repeats what the file
// holds.
func NewSigner(origin string, file []byte) (*Signer, error) {
	if err := checkOrigin(origin); err != nil {
		return nil, err
	}
	file = append(bytes.Clone(bytes.TrimSuffix(file, []byte("\n"))), '\n')
	lines := strings.Split(string(file), "\n")
	if lines[0] != keyFileV1 {
		return nil, fmt.Errorf("checkpoint keys: want as first line %q", keyFileV1)
	}
	if len(lines) != 4 {
		return nil, errors.New("checkpoint keys: want three lines")
	}
	var seeds [2][32]byte
	for i, a := range []algorithm{algEd25519, algMLDSA44} {
		rest, ok := strings.CutPrefix(lines[i+1], "PRIVATE+KEY+"+a.String()+"+")
		_, digits, ok2 := strings.Cut(rest, "+")
		b, err := base64.StdEncoding.Strict().DecodeString(digits)
		if !ok || !ok2 || err != nil || len(b) != 32 {
			return nil, fmt.Errorf("checkpoint keys: line %d is not PRIVATE+KEY+%s+<8 digits>+<32 bytes in base64>", i+2, a)
		}
		seeds[i] = [32]byte(b)
	}
	if !bytes.Equal(keyFile(seeds[0], seeds[1]), file) {
		return nil, errors.New("checkpoint keys: the file is damaged: a key does not belong to the digits before it")
	}
	s := &Signer{origin: origin, ed25519: ed25519.NewKeyFromSeed(seeds[0][:]), mldsa: mldsaKey(seeds[1])}
	var err error
	s.keys, err = newKeys(
		newVKey(origin, algEd25519, s.ed25519.Public().(ed25519.PublicKey)),
		newVKey(origin, algMLDSA44, s.mldsa.PublicKey().Bytes()))
	return s, err
}

// Origin names the log.
func (s *Signer) Origin() string { return s.origin }

// VKeys returns the two verifier keys (C2SP signed-note), for those who verify:
// Ed25519, then ML-DSA-44.
func (s *Signer) VKeys() []string { return s.keys.vkeys() }

// Verifier returns the verifier of what s signs.
func (s *Signer) Verifier() *Verifier { return &Verifier{s.origin, s.keys} }

// Format implements fmt.Formatter, so that no verb prints a key.
func (s *Signer) Format(w fmt.State, _ rune) {
	io.WriteString(w, "signer of "+s.origin) // an error has nowhere to go
}
