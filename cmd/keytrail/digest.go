package main

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
)

// digest is a running SHA-256 that prints as hexadecimal.
type digest struct{ hash.Hash }

func newDigest() digest { return digest{sha256.New()} }

func (d digest) String() string { return hex.EncodeToString(d.Sum(nil)) }
