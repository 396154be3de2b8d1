package tree_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
	"github.com/keytrail/keytrail/schemas"
)

var update = flag.Bool("update", false, "write the published test vectors anew; then run go generate ./schemas")

// vectors is schemas/tree/vectors.v1.json. A Hash is base64 in JSON.
type vectors struct {
	Comment     []string          `json:"comment"`
	Leaves      []vectorLeaf      `json:"leaves"`
	Roots       []tree.Hash       `json:"roots"` // of sizes 0, 1, 2, …
	Inclusion   vectorInclusion   `json:"inclusion_proof"`
	Consistency vectorConsistency `json:"consistency_proof"`
	Checkpoint  vectorCheckpoint  `json:"checkpoint"`
	Proof       string            `json:"tlog_proof"`
	Tiles       []vectorTile      `json:"tiles"`
}

type vectorLeaf struct {
	Index    uint64    `json:"index"`
	Subject  string    `json:"subject"`
	Document string    `json:"document"`
	Entry    string    `json:"entry"`
	LeafHash tree.Hash `json:"leaf_hash"`
}

type vectorInclusion struct {
	Size   uint64      `json:"size"`
	Index  uint64      `json:"index"`
	Hashes []tree.Hash `json:"hashes"`
}

type vectorConsistency struct {
	From   uint64      `json:"from"`
	To     uint64      `json:"to"`
	Hashes []tree.Hash `json:"hashes"`
}

type vectorCheckpoint struct {
	Origin string    `json:"origin"`
	Size   uint64    `json:"size"`
	Root   tree.Hash `json:"root"`
	Time   time.Time `json:"time"`
	VKeys  []string  `json:"verifier_keys"`
	Text   string    `json:"text"`
}

type vectorTile struct {
	Level   int    `json:"level"` // -1 for entries
	Index   uint64 `json:"index"`
	Width   int    `json:"width"`
	Path    string `json:"path"`
	Content []byte `json:"content,omitempty"` // of those that the tree of all leaves has
}

// computeVectors makes the vectors with the package, from fixed events and keys.
func computeVectors(t *testing.T) vectors {
	t.Helper()
	v := vectors{Comment: []string{
		"Test vectors of the Merkle tree over a Keytrail log. Hashes are SHA-256 in base64.",
		"leaves: entry is three lines, and leaf_hash is SHA-256(0x00 || entry) (RFC 6962, section 2.1). The document is hashed as the bytes of the string.",
		"roots: of the trees of the first 0, 1, 2, ... leaves. Proofs: RFC 6962, sections 2.1.1 and 2.1.2.",
		"checkpoint, tlog_proof, tiles: https://c2sp.org/tlog-checkpoint, tlog-cosignature, tlog-proof, tlog-tiles. The signature lines are Ed25519 (0x01) and ML-DSA-44 (0x06).",
	}}
	key := events.KeyID{15: 1}
	var subjects []string
	for _, a := range []events.Aggregate{
		events.KeyspaceAggregate("acme"),
		events.RoleAggregate("acme", "t_1", "admin"),
		events.KeyAggregate("acme", "t_1", key),
		events.RoleAggregate(events.KeyspaceID(strings.Repeat("k", 63)), events.TenantID(strings.Repeat("t", 64)), events.RoleID(strings.Repeat("r", 64))),
	} {
		if err := a.Validate(); err != nil {
			t.Fatal(err)
		}
		subjects = append(subjects, a.Subject())
	}
	const n = 13
	var stored tree.Hashes
	var r tree.Range
	var bundle []byte
	v.Roots = append(v.Roots, r.Root())
	for i := range n {
		l := vectorLeaf{Index: uint64(i), Subject: subjects[i%len(subjects)], Document: fmt.Sprintf(`{"id":"%d"}`, i)}
		document := sha256.Sum256([]byte(l.Document))
		entry := tree.Entry(l.Subject, document)
		l.Entry, l.LeafHash = string(entry), tree.LeafHash(l.Subject, document)
		v.Leaves = append(v.Leaves, l)
		stored = r.AppendStored(stored, l.LeafHash)
		v.Roots = append(v.Roots, r.Root())
		var err error
		if bundle, err = tree.AppendToBundle(bundle, entry); err != nil {
			t.Fatal(err)
		}
	}

	v.Inclusion = vectorInclusion{Size: n, Index: 9}
	v.Consistency = vectorConsistency{From: 6, To: n}
	var err error
	if v.Inclusion.Hashes, err = tree.ProveInclusion(stored, n, v.Inclusion.Index); err != nil {
		t.Fatal(err)
	}
	if v.Consistency.Hashes, err = tree.ProveConsistency(stored, v.Consistency.From, n); err != nil {
		t.Fatal(err)
	}

	s, err := tree.NewSigner(origin, tree.KeyFile(sha256.Sum256([]byte("test vectors: ed25519")), sha256.Sum256([]byte("test vectors: ml-dsa-44"))))
	if err != nil {
		t.Fatal(err)
	}
	text, err := s.SignDeterministic(tree.Head{Origin: origin, Size: n, Root: r.Root()}, signedAt)
	if err != nil {
		t.Fatal(err)
	}
	v.Checkpoint = vectorCheckpoint{Origin: origin, Size: n, Root: r.Root(), Time: signedAt, VKeys: s.VKeys(), Text: string(text)}
	proof, err := (&tree.Proof{Index: v.Inclusion.Index, Hashes: v.Inclusion.Hashes, Checkpoint: text}).MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	v.Proof = string(proof)

	for _, tile := range []tree.Tile{
		{Level: 0, Index: 0, Width: n}, {Level: tree.EntriesLevel, Index: 0, Width: n}, {Level: 0, Index: 999, Width: 256}, {Level: 1, Index: 1000, Width: 1},
		{Level: 2, Index: 1234067, Width: 256}, {Level: tree.EntriesLevel, Index: 1234067, Width: 255},
	} {
		w := vectorTile{Level: tile.Level, Index: tile.Index, Width: tile.Width, Path: tile.Path()}
		switch {
		case tile.In(n) != nil:
		case tile.Level == tree.EntriesLevel:
			w.Content = bundle
		default:
			if w.Content, err = tree.ReadTile(stored, n, tile); err != nil {
				t.Fatal(err)
			}
		}
		v.Tiles = append(v.Tiles, w)
	}
	return v
}

// TestPublishedVectors: the package computes what is published, byte for byte (T1).
func TestPublishedVectors(t *testing.T) {
	var got bytes.Buffer
	enc := json.NewEncoder(&got)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(computeVectors(t)); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("../../schemas/tree/vectors.v1.json", got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !bytes.Equal(got.Bytes(), schemas.TreeVectors()) {
		t.Fatalf("the tree is not the published one; computed:\n%s", got.Bytes())
	}
}

// TestVectorsHold: what is published is what a reader makes of it who has the
// parsers and checks alone, and RFC 6962.
func TestVectorsHold(t *testing.T) {
	var v vectors
	dec := json.NewDecoder(bytes.NewReader(schemas.TreeVectors()))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	var leaves []tree.Hash
	for i, l := range v.Leaves {
		subject, document, err := tree.ParseEntry([]byte(l.Entry))
		if err != nil || l.Index != uint64(i) || subject != l.Subject || document != sha256.Sum256([]byte(l.Document)) {
			t.Fatalf("leaf %d: %v", i, err)
		}
		if l.LeafHash != tree.Hash(sha256.Sum256([]byte("\x00"+l.Entry))) {
			t.Fatalf("leaf %d: another hash", i)
		}
		leaves = append(leaves, l.LeafHash)
	}
	for size, root := range v.Roots {
		if root != naiveRoot(leaves[:size]) {
			t.Fatalf("size %d: another root", size)
		}
	}
	if len(v.Roots) != len(leaves)+1 || len(leaves) != 13 {
		t.Fatalf("%d roots of %d leaves", len(v.Roots), len(leaves))
	}
	head := tree.Head{Origin: v.Checkpoint.Origin, Size: v.Checkpoint.Size, Root: v.Roots[v.Checkpoint.Size]}
	if err := tree.CheckInclusion(v.Inclusion.Hashes, head, v.Inclusion.Index, leaves[v.Inclusion.Index]); err != nil {
		t.Error(err)
	}
	older := tree.Head{Origin: head.Origin, Size: v.Consistency.From, Root: v.Roots[v.Consistency.From]}
	if err := tree.CheckConsistency(v.Consistency.Hashes, older, head); err != nil {
		t.Error(err)
	}
	verifier, err := tree.NewVerifier(v.Checkpoint.VKeys...)
	if err != nil {
		t.Fatal(err)
	}
	c, err := verifier.Open([]byte(v.Checkpoint.Text))
	if err != nil || c.Head != head || head.Root != v.Checkpoint.Root || !c.Time.Equal(v.Checkpoint.Time) {
		t.Errorf("%+v, %v", c, err)
	}
	var p tree.Proof
	if err := p.UnmarshalText([]byte(v.Proof)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Verify(verifier, leaves[p.Index]); err != nil || !slices.Equal(p.Hashes, v.Inclusion.Hashes) {
		t.Error(err)
	}
	contents := 0
	for _, w := range v.Tiles {
		tile, err := tree.ParseTile(w.Path)
		if err != nil || tile != (tree.Tile{Level: w.Level, Index: w.Index, Width: w.Width}) {
			t.Errorf("%s: %+v, %v", w.Path, tile, err)
		}
		if len(w.Content) == 0 {
			continue
		}
		contents++
		if tile.Level != tree.EntriesLevel {
			if want := slices.Concat(unarray(leaves)...); !bytes.Equal(w.Content, want) {
				t.Errorf("%s is not the leaves", w.Path)
			}
			continue
		}
		entries, err := tree.ParseBundle(w.Content, tile.Width)
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range entries {
			if string(e) != v.Leaves[i].Entry {
				t.Errorf("%s: entry %d", w.Path, i)
			}
		}
	}
	if contents != 2 {
		t.Errorf("%d tiles have their content", contents)
	}
}

func unarray(hashes []tree.Hash) [][]byte {
	out := make([][]byte, len(hashes))
	for i := range hashes {
		out[i] = hashes[i][:]
	}
	return out
}
