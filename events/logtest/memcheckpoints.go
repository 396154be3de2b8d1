package logtest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/keytrail/keytrail/events"
)

// MemCheckpoints is the log of checkpoints in memory. The zero value is empty.
type MemCheckpoints struct {
	mu    sync.Mutex
	texts [][]byte // texts[i] stands at i+1
	fault func() (stored bool, err error)
}

var _ events.Checkpoints = (*MemCheckpoints)(nil)

// Fail makes f decide about each call from now on: whether an Append is stored, and
// its error, that of Last too. Nil ends it.
func (c *MemCheckpoints) Fail(f func() (stored bool, err error)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = f
}

func (c *MemCheckpoints) faulty() (stored bool, err error) {
	if c.fault == nil {
		return true, nil
	}
	return c.fault()
}

// Last implements events.Checkpoints.
func (c *MemCheckpoints) Last(ctx context.Context) (cp events.StoredCheckpoint, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return cp, fmt.Errorf("%w: %w", events.ErrUnavailable, err)
	}
	if _, err := c.faulty(); err != nil || len(c.texts) == 0 {
		return cp, err
	}
	return events.StoredCheckpoint{Text: bytes.Clone(c.texts[len(c.texts)-1]), Seq: events.Seq(len(c.texts))}, nil
}

// Append implements events.Checkpoints.
func (c *MemCheckpoints) Append(ctx context.Context, after events.Seq, checkpoint []byte) (events.Seq, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("%w: %w", events.ErrUnavailable, err)
	}
	if len(checkpoint) == 0 || len(checkpoint) > events.MaxCheckpoint {
		return 0, fmt.Errorf("checkpoint: %d bytes, want 1 to %d", len(checkpoint), events.MaxCheckpoint)
	}
	if after != events.Seq(len(c.texts)) {
		return 0, events.ErrConflict
	}
	stored, err := c.faulty()
	if stored {
		c.texts = append(c.texts, bytes.Clone(checkpoint))
	}
	return events.Seq(len(c.texts)), err
}

// All returns everything that was stored, in order.
func (c *MemCheckpoints) All() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.texts)
}
