package receipts

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"golang.org/x/mod/sumdb/note"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// KeySuffix follows the log's origin in the name of the key that signs receipts. The
// key is the Ed25519 key of the log's checkpoints; under another name no signature of
// one is one of the other.
const KeySuffix = "/receipt"

const (
	noteV1  = "keytrail receipt v1"
	maxNote = 1 << 20
)

// Note returns the receipt as text that a person can read, signed if the issuer has a
// key (C2SP signed-note). Without one it is the text alone, and signed is false.
//
//	keytrail receipt v1
//	log 01JH2Q0000000000000000000L
//	resource /v1/keys/key_01JH2Q8X5T6V7W8Y9Z0ABCDEFG
//	event 01JH2Q8X5T6V7W8Y9Z0ABCDEFH key.revoked at 42
//	issued 2026-01-06T10:00:00.000Z by control-1
//	complete 2 of 2
//	node edge-1 01JH… applied at=44 epoch=1767693600000 decisions=17 age_ms=412 life_ms=60000 wait_ms=0
//	node edge-2 01JH… lapsed at=40 epoch=1767693600000 decisions=3 age_ms=60641 life_ms=60000 wait_ms=0
//
// The fourth word of the sixth line counts the runs on the list, the second those
// that are not waiting; the first word is "incomplete" where they differ.
func (i *Issuer) Note(r *Receipt) (text string, signed bool, err error) {
	text = r.text()
	if i.cfg.Signer == nil {
		return text, false, nil
	}
	b, err := note.Sign(&note.Note{Text: text}, i.cfg.Signer)
	if err != nil {
		return "", false, fmt.Errorf("sign a receipt: %w", err)
	}
	return string(b), true, nil
}

func (r *Receipt) text() string {
	var b strings.Builder
	state := "complete"
	if !r.Complete {
		state = "incomplete"
	}
	fmt.Fprintf(&b, "%s\nlog %s\nresource %s\nevent %s %s at %d\nissued %s by %s\n%s %d of %d\n", noteV1, r.Log, r.Resource,
		r.Event, r.Type, r.Seq, r.Issued, r.Control, state, r.Refusing(), len(r.Nodes))
	for i := range r.Nodes {
		n := &r.Nodes[i]
		instance := n.Instance.String()
		if n.Instance == (events.InstanceID{}) {
			instance = "unreadable"
		}
		fmt.Fprintf(&b, "node %s %s %s at=%d epoch=%d decisions=%d age_ms=%d life_ms=%d wait_ms=%d\n", n.Node, instance, n.Status,
			n.Applied, n.Epoch, n.Decisions, n.AgeMS, n.LifeMS, n.WaitMS)
	}
	return b.String()
}

// errNote repeats nothing of what was read.
var errNote = errors.New("receipt: not a text as this release writes it")

// parse reads exactly what text prints.
func parse(text string) (r Receipt, err error) {
	if len(text) > maxNote {
		return r, fmt.Errorf("receipt: %d bytes long, want %d at most", len(text), maxNote)
	}
	lines := strings.Split(text, "\n")
	if len(lines) < 7 || lines[0] != noteV1 {
		return r, fmt.Errorf("receipt: want %q as its first line", noteV1)
	}
	word := func(line int, i int) string {
		if w := strings.Split(lines[line], " "); i < len(w) {
			return w[i]
		}
		return ""
	}
	var errs [6]error
	r.Log, errs[0] = events.ParseLogID(word(1, 1))
	r.Resource = word(2, 1)
	r.Event, errs[1] = events.ParseEventID(word(3, 1))
	r.Type = events.Type(word(3, 2))
	r.Seq, errs[2] = number[events.Seq](word(3, 4))
	r.Issued, errs[3] = events.ParseTime(word(4, 1))
	r.Control = events.NodeID(word(4, 3))
	errs[4] = r.Control.Validate()
	r.Complete = word(5, 0) == "complete"
	if !strings.HasPrefix(r.Resource, "/v1/") || strings.ContainsFunc(r.Resource+string(r.Type), func(c rune) bool { return c >= unicode.MaxASCII || !unicode.IsGraphic(c) }) {
		errs[5] = errNote
	}
	for _, err := range errs {
		if err != nil {
			return Receipt{}, errNote
		}
	}
	r.Nodes = make([]Node, 0, len(lines)-7)
	for i := 6; i < len(lines)-1; i++ {
		n, err := parseNode(strings.Split(lines[i], " "))
		if err != nil {
			return Receipt{}, err
		}
		r.Nodes = append(r.Nodes, n)
	}
	if r.text() != text || r.Complete != (r.Refusing() == len(r.Nodes)) {
		return Receipt{}, errNote
	}
	return r, nil
}

func parseNode(w []string) (n Node, err error) {
	if len(w) != 10 {
		return n, errNote
	}
	n.Node = events.NodeID(w[1])
	if n.Node.Validate() != nil {
		return n, errNote
	}
	if w[2] != "unreadable" {
		if n.Instance, err = events.ParseInstanceID(w[2]); err != nil {
			return n, errNote
		}
	}
	switch n.Status = Status(w[3]); n.Status {
	case Applied, StartedAfter, HasEnded, HasLapsed, Waiting:
	default:
		return n, errNote
	}
	value := func(s string) string {
		_, v, _ := strings.Cut(s, "=")
		return v
	}
	var errs [6]error
	n.Applied, errs[0] = number[events.Seq](value(w[4]))
	n.Epoch, errs[1] = number[int64](value(w[5]))
	n.Decisions, errs[2] = number[uint64](value(w[6]))
	n.AgeMS, errs[3] = number[int64](value(w[7]))
	n.LifeMS, errs[4] = number[int64](value(w[8]))
	n.WaitMS, errs[5] = number[int64](value(w[9]))
	for _, err := range errs {
		if err != nil {
			return n, errNote
		}
	}
	return n, nil
}

func number[N ~uint64 | ~int64](s string) (N, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	return N(n), err
}

// Open verifies a signed receipt, offline. key is the verifier key of receipts, or the
// Ed25519 one of the log's checkpoints, of which it is made.
func Open(file []byte, key string) (Receipt, error) {
	if len(file) > maxNote {
		return Receipt{}, fmt.Errorf("receipt: %d bytes long, want %d at most", len(file), maxNote)
	}
	v, err := tree.NoteVerifier(key, KeySuffix)
	if err != nil {
		return Receipt{}, err
	}
	n, err := note.Open(file, note.VerifierList(v))
	if unverified := (*note.UnverifiedNoteError)(nil); errors.As(err, &unverified) {
		return Receipt{}, fmt.Errorf("receipt: it has no signature of the key %s+%08x: it is of another log, or was changed", v.Name(), v.KeyHash())
	}
	if err != nil {
		return Receipt{}, errors.New("receipt: not a signed note: want the file as it was written, with its signature, and unchanged")
	}
	// note.Open leaves out repeated lines and does not ask for canonical base64.
	sigs := slices.Concat(n.Sigs, n.UnverifiedSigs)
	again := bytes.Count(file[len(n.Text)+1:], []byte("\n")) != len(sigs)
	for _, s := range sigs {
		_, err := base64.StdEncoding.Strict().DecodeString(s.Base64)
		again = again || err != nil
	}
	if again {
		return Receipt{}, errors.New("receipt: want each signature once, in canonical base64: it is not as it was written")
	}
	r, err := parse(n.Text)
	if err == nil && v.Name() != Name(r.Log) {
		return Receipt{}, fmt.Errorf("receipt: it is of log %s, and the key signs for %s", r.Log, v.Name())
	}
	return r, err
}

// Name is the name of the key that signs the receipts of a log.
func Name(log events.LogID) string { return tree.Origin(log.String()) + KeySuffix }
