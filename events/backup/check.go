package backup

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// Checker checks the messages of one stream. Of KT_LIFE and KT_READ every message
// must be an event that follows the one before it in its history. A message of
// KT_USE is what a verifier wrote: one that cannot be read is counted, and is no
// fault of the log. It is not safe for concurrent use.
//
// It holds about 100 bytes for each history.
type Checker struct {
	Extent
	Unreadable uint64 // messages of KT_USE that cannot be read
	FirstBad   uint64 // and the first of them, 0 = none

	heads map[[sha256.Size]byte]chainHead
	edge  []node // the complete subtrees, the largest first
	sizes map[uint64]tree.Hash
}

type chainHead struct {
	rev  uint64
	hash [sha256.Size]byte
}

// node is the root of a complete subtree of 2^level leaves.
type node struct {
	level int
	hash  [sha256.Size]byte
}

// NewChecker returns a checker for a stream whose first message has the sequence
// first. RootAt will answer for the sizes.
func NewChecker(stream string, first uint64, sizes ...uint64) *Checker {
	c := &Checker{Extent: Extent{Stream: stream, First: first, Last: first - 1}, heads: map[[sha256.Size]byte]chainHead{}, sizes: map[uint64]tree.Hash{}}
	for _, n := range sizes {
		c.sizes[n] = tree.Hash{}
	}
	c.grown()
	return c
}

// Take checks the next message. The error is a *Fault about it.
func (c *Checker) Take(m *Message) error {
	if m.Seq != c.Last+1 {
		return &Fault{Stream: c.Stream, Seq: c.Last + 1, Reason: fmt.Sprintf("missing: sequence %d comes next", m.Seq)}
	}
	if c.Stream == Use {
		c.use(m)
	} else if err := c.event(m); err != nil {
		return &Fault{Stream: c.Stream, Seq: m.Seq, Reason: err.Error()}
	}
	c.add(m)
	c.Last = m.Seq
	c.grown()
	return nil
}

func (c *Checker) use(m *Message) {
	b, err := events.DecodeUses(m.Data)
	if err == nil && m.Subject == events.UsePrefix+string(b.Node) {
		return
	}
	if c.Unreadable++; c.FirstBad == 0 {
		c.FirstBad = m.Seq
	}
}

func (c *Checker) event(m *Message) error {
	e, err := events.DecodeStrict(&events.Message{Subject: m.Subject, Data: m.Data})
	if newer := (*events.NewerError)(nil); errors.As(err, &newer) {
		return fmt.Errorf("it cannot be checked: %w", newer)
	}
	if err != nil {
		return fmt.Errorf("it is no event as Keytrail writes it: %w", err)
	}
	if strings.HasPrefix(m.Subject, events.ReadPrefix) != (c.Stream == Read) {
		return errors.New("it belongs to another stream")
	}
	name := sha256.Sum256([]byte(m.Subject))
	h := c.heads[name]
	switch {
	case e.Rev != h.rev+1:
		return fmt.Errorf("the history %s has revision %d here, and revision %d before it", m.Subject, e.Rev, h.rev)
	case e.Prev != events.Hash(h.hash):
		return fmt.Errorf("revision %d of the history %s does not name the hash of the revision before it: one of the two was altered", e.Rev, m.Subject)
	}
	c.heads[name] = chainHead{e.Rev, sha256.Sum256(m.Data)}
	return nil
}

// add hashes the message into the tree (RFC 6962, section 2.1; the leaf is of the
// entry that package tree documents).
func (c *Checker) add(m *Message) {
	document := sha256.Sum256(m.Data)
	entry := "\x00urn:keytrail:entry:v1\n" + m.Subject + "\n" + hex.EncodeToString(document[:]) + "\n"
	n := node{hash: sha256.Sum256([]byte(entry))}
	for k := len(c.edge) - 1; k >= 0 && c.edge[k].level == n.level; k-- {
		n = node{n.level + 1, parent(c.edge[k].hash, n.hash)}
		c.edge = c.edge[:k]
	}
	c.edge = append(c.edge, n)
}

func parent(left, right [sha256.Size]byte) [sha256.Size]byte {
	b := append(append([]byte{1}, left[:]...), right[:]...)
	return sha256.Sum256(b)
}

// root returns the root of the tree so far.
func (c *Checker) root() tree.Hash {
	if len(c.edge) == 0 {
		return tree.Hash(sha256.Sum256(nil))
	}
	h := c.edge[len(c.edge)-1].hash
	for k := len(c.edge) - 2; k >= 0; k-- {
		h = parent(c.edge[k].hash, h)
	}
	return tree.Hash(h)
}

// grown notes the root of a size that was asked for.
func (c *Checker) grown() {
	if _, asked := c.sizes[c.Messages()]; asked {
		c.sizes[c.Messages()] = c.root()
	}
}

// Done returns what the stream holds, with its root.
func (c *Checker) Done() Extent {
	c.Root = c.root()
	return c.Extent
}

// RootAt returns the root of the stream's first size messages; ok is false if it
// was not asked for, or the stream is shorter.
func (c *Checker) RootAt(size uint64) (root tree.Hash, ok bool) {
	root, asked := c.sizes[size]
	return root, asked && c.Messages() >= size
}

// Compare compares a stream with what is known of it: from a manifest or a
// checkpoint, as source says. The error is a *Fault.
func Compare(got, want Extent, source string) error {
	switch {
	case got.First != want.First:
		return &Fault{Stream: got.Stream, Seq: min(got.First, want.First), Reason: fmt.Sprintf("the stream begins at sequence %d, %s says %d", got.First, source, want.First)}
	case got.Last < want.Last:
		return &Fault{Stream: got.Stream, Seq: got.Last + 1, Reason: fmt.Sprintf("missing: the stream ends at sequence %d, %s says %d", got.Last, source, want.Last)}
	case got.Root != want.Root:
		return &Fault{Stream: got.Stream, Reason: fmt.Sprintf("the tree over the sequences %d to %d has the root %s, %s says %s: at least one of these messages was rewritten, with all that follows in its history; "+
			"the root does not tell which", got.First, want.Last, got.Root, source, want.Root)}
	}
	return nil
}
