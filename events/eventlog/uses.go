package eventlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// Publish implements events.UseSink. Each try carries the expectation, so that
// the batch is stored once at most; the id tells our own earlier try from another
// process's message.
func (u *Uses) Publish(ctx context.Context, node events.NodeID, id string, expect events.Seq, data []byte) (events.Seq, error) {
	if err := node.Validate(); err != nil {
		return 0, fmt.Errorf("publish uses: %w", err)
	}
	if id == "" || len(data) == 0 || len(data) > streams.MaxMessage {
		return 0, fmt.Errorf("publish uses: %d bytes: want an id and 1 to %d bytes", len(data), streams.MaxMessage)
	}
	ctx, cancel := u.bound(ctx)
	defer cancel()
	m := nats.NewMsg(events.UsePrefix + string(node))
	m.Data = data
	m.Header.Set(hdrMsgID, id)
	m.Header.Set(hdrStream, useStream)
	seq, err := u.publishUses(ctx, m, expect)
	if err != nil {
		return 0, fmt.Errorf("publish uses of %s: %w", node, err)
	}
	return seq, nil
}

func (u *Uses) publishUses(ctx context.Context, m *nats.Msg, expect events.Seq) (events.Seq, error) {
	place := expect
	for r := (retry{}); ; {
		m.Header.Set(hdrExpect, strconv.FormatUint(uint64(place), 10))
		ack, err := u.send(ctx, m)
		if err == nil {
			return events.Seq(ack.Seq), nil
		}
		if api := (*apiError)(nil); !errors.As(err, &api) || api.ErrCode != codeWrongLast && api.ErrCode != codeWrongLastConstant {
			return 0, err
		}
		last, readErr := u.lastOf(ctx, useStream, m.Subject)
		switch {
		case readErr != nil: // an earlier call may have stored it
			return 0, fmt.Errorf("%w: %w", events.ErrUnknownOutcome, readErr)
		case last == nil: // retention took the message at expect, or this is another log
			if err := u.sameLog(ctx); err != nil {
				return 0, err
			}
			place = 0
		case last.seq <= expect:
			place = expect // the conflict is with a write in flight, or a deposed leader answered
		case last.header.Get(hdrMsgID) == m.Header.Get(hdrMsgID) && bytes.Equal(last.data, m.Data):
			return last.seq, nil
		default:
			return 0, &events.FencedError{Last: useMessage(last)}
		}
		if r.wait(ctx) != nil {
			return 0, fmt.Errorf("%w: the node's last message does not have sequence %d: %w", events.ErrUnknownOutcome, expect, err)
		}
	}
}

// sameLog reports whether the server still holds the log that was opened.
func (u *Uses) sameLog(ctx context.Context) error {
	life, err := u.info(ctx, lifeStream)
	if err != nil {
		return fmt.Errorf("%w: %w", events.ErrUnknownOutcome, err)
	}
	id, err := streams.Identity(&life.Config)
	if err == nil && id != u.id {
		return u.foreign(id)
	}
	return err
}

// Tail implements events.UseSink. Whether a message is the node's last, only an
// append that expects it can tell.
func (u *Uses) Tail(ctx context.Context, node events.NodeID) (events.UseMessage, bool, error) {
	if err := node.Validate(); err != nil {
		return events.UseMessage{}, false, fmt.Errorf("tail of uses: %w", err)
	}
	ctx, cancel := u.bound(ctx)
	defer cancel()
	s, err := u.lastOf(ctx, useStream, events.UsePrefix+string(node))
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
func (u *Uses) LastUse(ctx context.Context) (events.Seq, error) {
	ctx, cancel := u.bound(ctx)
	defer cancel()
	return u.end(ctx, useStream, 0)
}

// Copied implements events.CopiedSource. The log's servers hear it: they bound the uses
// that a node may store beyond it.
func (u *Uses) Copied(seq events.Seq) error {
	return u.nc.Publish(streams.Copied, strconv.AppendUint(nil, uint64(seq), 10))
}

// LastUseAtLeast implements events.LastUseAtLeastSource.
func (u *Uses) LastUseAtLeast(ctx context.Context, seq events.Seq) (events.Seq, error) {
	return u.end(ctx, useStream, seq)
}

// useBytes bounds one answer of ReadUses.
const useBytes = 4 << 20

// ReadUses implements events.UseSource. It returns what is there at once; when
// nothing is, it sleeps until the stream publishes a committed message's
// headers, and looks again each second in case that was dropped.
func (u *Uses) ReadUses(ctx context.Context, after events.Seq, most int) ([]events.UseMessage, error) {
	if most < 1 {
		return nil, fmt.Errorf("read uses: max %d: want at least 1", most)
	}
	out, err := u.readUses(ctx, after, most)
	if err != nil {
		return nil, fmt.Errorf("read uses after %d: %w", after, err)
	}
	return out, nil
}

func (u *Uses) readUses(ctx context.Context, after events.Seq, most int) ([]events.UseMessage, error) {
	var woken chan *nats.Msg
	for r := (retry{}); ; {
		out, err := u.usesAfter(ctx, after, most, &r)
		if len(out) > 0 {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if woken == nil { // nothing there: subscribe, then look once more
			woken = make(chan *nats.Msg, 1)
			sub, err := u.nc.ChanSubscribe(streams.UseTail, woken)
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
func (u *Uses) usesAfter(ctx context.Context, after events.Seq, most int, r *retry) ([]events.UseMessage, error) {
	var out []events.UseMessage
	gap := false
	err := u.get(ctx, useStream, getRequest{Seq: after + 1, Batch: min(most, bulkMessages), MaxBytes: useBytes}, func(s *stored) error {
		if s.seq != after+1+events.Seq(len(out)) {
			gap = true
			return errBehind
		}
		out = append(out, useMessage(s))
		return nil
	})
	if len(out) > 0 {
		return out, nil
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil && !gap {
		if u.nc.IsClosed() {
			return nil, fmt.Errorf("%w: %w", events.ErrUnavailable, err)
		}
		return nil, r.wait(ctx) // the server is restarting: keep waiting
	}
	short, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	si, err := u.confirmed(short, useStream)
	if err != nil {
		return nil, ctx.Err()
	}
	switch first := events.Seq(si.State.FirstSeq); {
	case first > after+1:
		return nil, &events.TrimmedError{After: after, First: first}
	case events.Seq(si.State.LastSeq) >= after && !gap:
		return nil, nil
	}
	var last events.Seq
	lost, err := u.lost(ctx, useStream, func(si *jetstream.StreamInfo) bool {
		last = events.Seq(si.State.LastSeq)
		return last < after || gap && events.Seq(si.State.FirstSeq) <= after+1 && u.gone(ctx, useStream, after+1)
	})
	const todo = "Stop here, and restore the server's store directory or a backup"
	switch {
	case err != nil || !lost:
		return nil, ctx.Err()
	case last < after:
		return nil, &events.CorruptError{Seq: last + 1, Reason: fmt.Sprintf("the use stream ends at %d, but %d was read before: its end is lost, or the server holds another stream. %s", last, after, todo)}
	}
	return nil, &events.CorruptError{Seq: after + 1, Reason: fmt.Sprintf("message %d of the use stream is gone or cannot be read from its store. %s", after+1, todo)}
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
