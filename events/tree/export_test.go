package tree

import "time"

// KeyFile is the key file of two seeds.
func KeyFile(ed, mldsa [32]byte) []byte { return keyFile(ed, mldsa) }

// SignDeterministic is Sign without the randomness of ML-DSA (FIPS 204, section
// 3.4), so that a test vector can be computed again.
func (s *Signer) SignDeterministic(head Head, at time.Time) ([]byte, error) {
	return s.sign(head, at, func(msg []byte) ([]byte, error) { return s.mldsa.SignDeterministic(msg, nil) })
}
