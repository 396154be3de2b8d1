package eventlog

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
)

// Publish implements events.UseSink.
func (l *Log) Publish(ctx context.Context, node events.NodeID, id string, data []byte) (events.Seq, error) {
	if err := node.Validate(); err != nil {
		return 0, fmt.Errorf("publish uses: %w", err)
	}
	if id == "" || len(data) == 0 || len(data) > MaxMessage {
		return 0, fmt.Errorf("publish uses: %d bytes: want an id and 1 to %d bytes", len(data), MaxMessage)
	}
	ctx, cancel := l.bound(ctx)
	defer cancel()
	m := nats.NewMsg(events.UsePrefix + string(node))
	m.Data = data
	m.Header.Set(hdrMsgID, id)
	m.Header.Set(hdrStream, useStream)
	ack, err := l.send(ctx, m)
	if err != nil {
		return 0, fmt.Errorf("publish uses of %s: %w", node, err)
	}
	return events.Seq(ack.Seq), nil
}

// Tail implements events.UseSink; the stream's leader answers.
func (l *Log) Tail(ctx context.Context, node events.NodeID) (events.UseMessage, bool, error) {
	if err := node.Validate(); err != nil {
		return events.UseMessage{}, false, fmt.Errorf("tail of uses: %w", err)
	}
	ctx, cancel := l.bound(ctx)
	defer cancel()
	s, err := l.leaderGet(ctx, useStream, getRequest{LastFor: events.UsePrefix + string(node)})
	if err != nil {
		return events.UseMessage{}, false, fmt.Errorf("tail of uses of %s: %w", node, err)
	}
	if s == nil {
		return events.UseMessage{}, false, nil
	}
	return useMessage(s), true, nil
}

func useMessage(s *stored) events.UseMessage {
	return events.UseMessage{Seq: s.seq, Stored: s.at, Node: events.NodeID(s.subject[len(events.UsePrefix):]), Data: s.data}
}

// LastUse implements events.UseSource.
func (l *Log) LastUse(ctx context.Context) (events.Seq, error) {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	si, err := l.info(ctx, useStream)
	if err != nil {
		return 0, err
	}
	return events.Seq(si.State.LastSeq), nil
}

// useBytes bounds one answer of ReadUses.
const useBytes = 16 << 20

// ReadUses implements events.UseSource. It returns what is there at once; when
// nothing is, it sleeps until the stream publishes a committed message's
// headers, and looks again each second in case that was dropped.
func (l *Log) ReadUses(ctx context.Context, after events.Seq, most int) ([]events.UseMessage, error) {
	if most < 1 {
		return nil, fmt.Errorf("read uses: max %d: want at least 1", most)
	}
	out, err := l.readUses(ctx, after, most)
	if err != nil {
		return nil, fmt.Errorf("read uses after %d: %w", after, err)
	}
	return out, nil
}

func (l *Log) readUses(ctx context.Context, after events.Seq, most int) ([]events.UseMessage, error) {
	var woken chan *nats.Msg
	for {
		out, err := l.usesAfter(ctx, after, most)
		if len(out) > 0 {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if woken == nil { // nothing there: subscribe, then look once more
			woken = make(chan *nats.Msg, 1)
			sub, err := l.nc.ChanSubscribe(useTail, woken)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", events.ErrUnavailable, err)
			}
			defer sub.Unsubscribe()
			continue
		}
		if err := waitOr(ctx, time.Second, woken); err != nil {
			return nil, err
		}
	}
}

// usesAfter returns what follows after, nothing if there is none or the server
// does not answer now.
func (l *Log) usesAfter(ctx context.Context, after events.Seq, most int) ([]events.UseMessage, error) {
	floor, err := l.uses.floor(ctx, l, after)
	if err != nil {
		return nil, err
	}
	var out []events.UseMessage
	gap := false
	err = l.get(ctx, useStream, getRequest{Seq: after + 1, Batch: min(most, bulkMessages), MaxBytes: useBytes}, func(s *stored) error {
		if s.seq != after+1+events.Seq(len(out)) {
			gap = true
			return errBehind
		}
		u := useMessage(s)
		floor = max(floor, u.Stored)
		u.Stored = floor
		out = append(out, u)
		return nil
	})
	if n := len(out); n > 0 {
		l.uses.set(out[n-1].Seq, floor)
		return out, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil && !gap {
		if l.nc.IsClosed() {
			return nil, fmt.Errorf("%w: %w", events.ErrUnavailable, err)
		}
		return nil, waitFor(ctx, pause) // the server is restarting: keep waiting
	}
	short, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	si, err := l.info(short, useStream)
	if err != nil {
		return nil, ctx.Err()
	}
	first, last := events.Seq(si.State.FirstSeq), events.Seq(si.State.LastSeq)
	switch {
	case first > after+1:
		return nil, &events.TrimmedError{After: after, First: first}
	case last < after:
		return nil, &events.CorruptError{Seq: last + 1, Reason: fmt.Sprintf("the use stream ends at %d, but %d was read before: its end is lost, or the server holds another stream. "+
			"Stop here, and restore the server's store directory or a backup", last, after)}
	case gap:
		return nil, &events.CorruptError{Seq: after + 1, Reason: fmt.Sprintf("message %d of the use stream is gone or cannot be read from its store. "+
			"Stop here, and restore the server's store directory or a backup", after+1)}
	}
	return nil, nil
}

// useClock keeps UseMessage.Stored from running backwards when the server's
// clock was set back: each message is given at least the time of the one before.
type useClock struct {
	mu  sync.Mutex
	seq events.Seq  // guarded by mu
	at  events.Time // guarded by mu; what message seq was given
}

func (c *useClock) set(seq events.Seq, at events.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq, c.at = seq, at
}

func (c *useClock) known(seq events.Seq) (events.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at, c.seq == seq
}

// floor returns what message seq was given; a reader that starts in the middle
// looks at that message.
func (c *useClock) floor(ctx context.Context, l *Log, seq events.Seq) (events.Time, error) {
	if seq == 0 {
		return 0, nil
	}
	if at, ok := c.known(seq); ok {
		return at, nil
	}
	var at events.Time
	err := l.get(ctx, useStream, getRequest{Seq: seq, Batch: 1, MaxBytes: useBytes}, func(s *stored) error {
		if s.seq == seq {
			at = s.at
		}
		return nil
	})
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if err == nil {
		c.set(seq, at)
	}
	return at, nil
}

// waitOr waits for d, a message or the end of ctx, and then returns its error.
func waitOr(ctx context.Context, d time.Duration, woken <-chan *nats.Msg) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-woken:
	case <-t.C:
	}
	return nil
}
