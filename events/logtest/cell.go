package logtest

import (
	"sync/atomic"
	"testing"
)

// Cell counts what one cell of the fault matrix tries, and logs it when the test ends:
// cmd/faults.sh makes a table of these lines. It is safe for concurrent use.
type Cell struct {
	t             testing.TB
	rounds, wrong atomic.Int64
}

// NewCell returns the cell with a name, which holds no "|". seed is what the rounds
// were drawn with; 0 = nothing was drawn.
func NewCell(t testing.TB, name string, seed uint64) *Cell {
	c := &Cell{t: t}
	t.Cleanup(func() {
		t.Logf("fault cell |%s|%d|%d|%d|", name, c.rounds.Load(), seed, c.wrong.Load())
	})
	return c
}

// Tried counts rounds that have ended.
func (c *Cell) Tried(rounds int) { c.rounds.Add(int64(rounds)) }

// Wrong counts a wrong answer and fails the test.
func (c *Cell) Wrong(format string, args ...any) {
	c.t.Helper()
	c.wrong.Add(1)
	c.t.Errorf(format, args...)
}
