package commands_test

import (
	"fmt"
	"testing"

	"github.com/keytrail/keytrail/commands"
)

// BenchmarkCreate makes keys of one tenant over the log in memory: what the write
// side itself costs, and what a tenant's many names add to it.
func BenchmarkCreate(b *testing.B) {
	for _, had := range []int{0, 10_000} {
		b.Run(fmt.Sprintf("keys=%d", had), func(b *testing.B) {
			w := newWorld(b)
			n := w.node("one")
			w.define(n, "acme", acme)
			call := w.call("", "")
			make := func(i int) {
				if _, err := n.Create(b.Context(), call, "acme", &commands.Create{Tenant: "t1", Name: fmt.Sprintf("key %d", i)}); err != nil {
					b.Fatal(err)
				}
			}
			for i := range had {
				make(-i - 1)
			}
			for i := 0; b.Loop(); i++ {
				make(i)
			}
		})
	}
}

// BenchmarkSecret draws a secret.
func BenchmarkSecret(b *testing.B) {
	random := newDice(1)
	for b.Loop() {
		if _, err := commands.NewSecret(&acme.KeyTypes[0], "live", random); err != nil {
			b.Fatal(err)
		}
	}
}
