package tree

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Proof shows without a connection that a log has an entry: a checkpoint, and the
// inclusion proof of the entry in its tree. Its text form is that of C2SP
// tlog-proof, and files of it end in .tlog-proof.
type Proof struct {
	Index      uint64
	Hashes     []Hash // from the leaf's sibling to the root's child (RFC 6962, section 2.1.1)
	Extra      []byte // of the application; nothing signs it. Empty for none
	Checkpoint []byte // as it was signed, with the signatures of the log and of witnesses
}

const (
	proofV1 = "c2sp.org/tlog-proof@v1"

	// maxProofHashes is the length of the longest path in a tree of fewer than
	// MaxSize leaves.
	maxProofHashes = maxLevels

	// maxExtra bounds Extra, in bytes.
	maxExtra = 64 << 10

	// maxProof bounds the text, in bytes.
	maxProof = 256 << 10
)

// Verify checks that the log of v has, at p.Index, the leaf with this hash, and
// returns the checkpoint that says so. Extra is not checked.
func (p *Proof) Verify(v *Verifier, leaf Hash) (Checkpoint, error) {
	c, err := v.Open(p.Checkpoint)
	if err != nil {
		return Checkpoint{}, err
	}
	if err := CheckInclusion(p.Hashes, c.Head, p.Index, leaf); err != nil {
		return Checkpoint{}, err
	}
	return c, nil
}

func (p *Proof) check() error {
	switch {
	case p.Index >= MaxSize:
		return fmt.Errorf("tlog-proof: index %d: want less than %d", p.Index, MaxSize)
	case len(p.Hashes) > maxProofHashes:
		return fmt.Errorf("tlog-proof: %d hashes: want %d at most", len(p.Hashes), maxProofHashes)
	case len(p.Extra) > maxExtra:
		return fmt.Errorf("tlog-proof: extra: %d bytes, want %d at most", len(p.Extra), maxExtra)
	case len(p.Checkpoint) == 0 || len(p.Checkpoint) > maxCheckpoint || !bytes.HasSuffix(p.Checkpoint, []byte("\n")):
		return fmt.Errorf("tlog-proof: want behind the empty line a checkpoint of %d bytes at most, which ends with a line feed", maxCheckpoint)
	}
	return nil
}

// MarshalText implements encoding.TextMarshaler. It fails for a proof that
// UnmarshalText would refuse.
func (p *Proof) MarshalText() ([]byte, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	b := []byte(proofV1 + "\n")
	if len(p.Extra) > 0 {
		b = fmt.Appendf(b, "extra %s\n", base64.StdEncoding.EncodeToString(p.Extra))
	}
	b = fmt.Appendf(b, "index %d\n", p.Index)
	for _, h := range p.Hashes {
		b = fmt.Appendf(b, "%s\n", h)
	}
	b = append(b, '\n')
	return append(b, p.Checkpoint...), nil
}

// UnmarshalText reads what MarshalText prints, and nothing else. Nothing is
// verified; the checkpoint is not even read. On an error, p is as before.
func (p *Proof) UnmarshalText(text []byte) error {
	if len(text) > maxProof {
		return fmt.Errorf("tlog-proof: %d bytes long, want %d at most", len(text), maxProof)
	}
	head, checkpoint, ok := bytes.Cut(text, []byte("\n\n"))
	if !ok {
		return errors.New("tlog-proof: want an empty line before the checkpoint")
	}
	lines := strings.Split(string(head), "\n")
	if lines[0] != proofV1 {
		return fmt.Errorf("tlog-proof: want as first line %q", proofV1)
	}
	lines = lines[1:]
	q := Proof{Hashes: []Hash{}, Checkpoint: bytes.Clone(checkpoint)}
	if len(lines) > 0 {
		if digits, ok := strings.CutPrefix(lines[0], "extra "); ok {
			extra, err := base64.StdEncoding.DecodeString(digits)
			if err != nil || len(extra) == 0 || base64.StdEncoding.EncodeToString(extra) != digits {
				return errors.New("tlog-proof: extra: want base64, or no such line")
			}
			q.Extra, lines = extra, lines[1:]
		}
	}
	if len(lines) == 0 {
		return errors.New("tlog-proof: want a line with the index")
	}
	digits, ok := strings.CutPrefix(lines[0], "index ")
	index, err := strconv.ParseUint(digits, 10, 64)
	if !ok || err != nil || strconv.FormatUint(index, 10) != digits {
		return errors.New("tlog-proof: want a line with \"index \" and a decimal number without leading zeroes")
	}
	q.Index = index
	for i, line := range lines[1:] {
		h, err := parseHash(line)
		if err != nil {
			return fmt.Errorf("tlog-proof: hash %d: %w", i, err)
		}
		q.Hashes = append(q.Hashes, h)
	}
	if err := q.check(); err != nil {
		return err
	}
	*p = q
	return nil
}
