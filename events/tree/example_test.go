package tree_test

import (
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/keytrail/keytrail/events/tree"
)

// A log of three events signs its head. Somebody who has one document, the proof of
// it and the log's public keys verifies, without a connection, that the log has it.
func Example() {
	documents := []string{`{"n":1}`, `{"n":2}`, `{"n":3}`}
	const subject = "kt.life.acme.t_1.role.admin"

	var r tree.Range
	var stored tree.Hashes
	for _, d := range documents {
		stored = r.AppendStored(stored, tree.LeafHash(subject, sha256.Sum256([]byte(d))))
	}
	signer, err := tree.NewSigner(tree.Origin("01JZ0000000000000000000000"), tree.GenerateKeyFile())
	if err != nil {
		panic(err)
	}
	checkpoint, err := signer.Sign(r.Head(signer.Origin()), time.Now())
	if err != nil {
		panic(err)
	}
	hashes, err := tree.ProveInclusion(stored, r.Size(), 1)
	if err != nil {
		panic(err)
	}
	text, err := (&tree.Proof{Index: 1, Hashes: hashes, Checkpoint: checkpoint}).MarshalText()
	if err != nil {
		panic(err)
	}

	verifier, err := tree.NewVerifier(signer.VKeys()...)
	if err != nil {
		panic(err)
	}
	var proof tree.Proof
	if err := proof.UnmarshalText(text); err != nil {
		panic(err)
	}
	for _, d := range documents[1:] {
		c, err := proof.Verify(verifier, tree.LeafHash(subject, sha256.Sum256([]byte(d))))
		fmt.Println(d, c.Origin, c.Size, err)
	}
	// Output:
	// {"n":2} keytrail/log/01JZ0000000000000000000000 3 <nil>
	// {"n":3}  0 inclusion of index 1 in size 3: the proof does not hold
}
