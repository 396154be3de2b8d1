package eventlog

import (
	"bytes"
	"context"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// Checkpoints is the client of the stream of signed checkpoints.
type Checkpoints struct{ *transport }

// Last implements events.Checkpoints: the stream's leader answers.
func (c *Checkpoints) Last(ctx context.Context) (cp events.StoredCheckpoint, err error) {
	ctx, cancel := c.bound(ctx)
	defer cancel()
	s, err := c.leaderGet(ctx, checkpointStream, getRequest{LastFor: streams.CheckpointSubject})
	if s == nil || err != nil {
		return cp, err
	}
	return events.StoredCheckpoint{Text: s.data, Seq: s.seq}, nil
}

// Append implements events.Checkpoints. The message behind after tells what an
// earlier try did.
func (c *Checkpoints) Append(ctx context.Context, after events.Seq, checkpoint []byte) (events.Seq, error) {
	if len(checkpoint) == 0 || len(checkpoint) > events.MaxCheckpoint {
		return 0, fmt.Errorf("checkpoint: %d bytes, want 1 to %d", len(checkpoint), events.MaxCheckpoint)
	}
	ctx, cancel := c.bound(ctx)
	defer cancel()
	m := nats.NewMsg(streams.CheckpointSubject)
	m.Data = checkpoint
	m.Header.Set(hdrStream, checkpointStream)
	m.Header.Set(hdrExpect, strconv.FormatUint(uint64(after), 10))
	seq, err := c.deliver(ctx, checkpointStream, []*nats.Msg{m}, func(ctx context.Context) (events.Seq, verdict) {
		return c.settle(ctx, after, checkpoint)
	})
	c.note(checkpointStream, err)
	if err != nil {
		return 0, fmt.Errorf("store a checkpoint: %w", err)
	}
	return seq, nil
}

// settle reads what an earlier try to store the checkpoint behind after has done.
func (c *Checkpoints) settle(ctx context.Context, after events.Seq, checkpoint []byte) (events.Seq, verdict) {
	next, err := c.leaderGet(ctx, checkpointStream, getRequest{Seq: after + 1, NextFor: streams.CheckpointSubject})
	switch {
	case err != nil:
		return 0, unclear
	case next != nil && bytes.Equal(next.data, checkpoint):
		return next.seq, ours
	case next != nil:
		return 0, moved
	}
	last, err := c.Last(ctx)
	switch {
	case err != nil:
		return 0, unclear
	case last.Seq != after:
		return 0, moved
	}
	return 0, open
}
