package verifier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/keytrail/keytrail/events"
)

// maxClaims is how often a start tries to claim the node's name while another
// process writes under it.
const maxClaims = 20

// begin claims the node's name: it writes down how the epoch before ended, opens
// a new one, and admits decisions. A conflict means that another process wrote
// meanwhile: one that starts too, or the one before. begin then goes on at once
// from the message that it met: the one before may write its next soon.
func (l *Ledger) begin(ctx context.Context) error {
	last, ok, err := l.tail(ctx)
	if err != nil {
		return err
	}
	for claim := 1; ; claim++ {
		if err := l.vacant(ctx); err != nil {
			return err
		}
		err := l.claim(ctx, &last, ok)
		if err == nil {
			l.admit()
			return nil
		}
		var fenced *events.FencedError
		if !errors.As(err, &fenced) || claim == maxClaims {
			return err
		}
		last, ok = fenced.Last, true
	}
}

// vacant refuses to start while another process holds the name.
func (l *Ledger) vacant(ctx context.Context) error {
	if l.cfg.Alive == nil {
		return nil
	}
	ask, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	alive, holder, err := l.cfg.Alive(ask, l.cfg.Node)
	switch {
	case err != nil:
		l.cfg.Logger.WarnContext(ctx, "it is not known whether another process holds this node's name; one that does is fenced",
			slog.String("node", string(l.cfg.Node)), slog.Any("err", err))
	case alive:
		return fmt.Errorf("ledger: %w: node %s belongs to a process that is alive (%s): give each process a name of its own, or stop that one first; --take-over starts anyway and fences it",
			events.ErrFenced, l.cfg.Node, holder)
	}
	return nil
}

// claim writes the gap that the epoch before may need, and the open record, each
// only while the message before it is the node's last; m is that one, if ok. So the epoch before gets
// no message after its gap, and its numbers from the gap's first on are exactly
// those that are not stored.
//
//	crash after the gap record:  the next start finds it last and writes no second one.
//	crash after the open record: the next start finds an epoch without numbers and
//	                             writes a gap for it, of unknown length.
func (l *Ledger) claim(ctx context.Context, m *events.UseMessage, ok bool) error {
	l.last = m.Seq
	epoch := l.cfg.Now().UnixMicro()
	if ok {
		last, err := l.read(m)
		if err != nil {
			// It is not this node's work, and must not keep it from starting. The
			// auditor sets it aside, and knows where the epoch before ended.
			l.cfg.Logger.ErrorContext(ctx, "this node's last record in the use stream cannot be read: a new epoch begins after it",
				slog.Uint64("seq", uint64(m.Seq)), slog.Any("err", err))
			epoch = max(epoch, m.Stored.Std().UnixMicro()+1)
		} else {
			epoch = max(epoch, last.Epoch+1)
			if err := l.endEpoch(ctx, &last); err != nil {
				return err
			}
		}
	}
	l.setEpoch(epoch)
	begin := l.batch(events.BatchOpen, 1)
	_, err := l.publish(ctx, &begin)
	return err
}

// read decodes a message of this node.
func (l *Ledger) read(m *events.UseMessage) (b events.UseBatch, err error) {
	if b, err = events.DecodeUses(m.Data); err != nil {
		return b, err
	}
	if b.Node != l.cfg.Node || b.Log != l.cfg.Log {
		return b, fmt.Errorf("it says node %s and log %s: want %s and %s", b.Node, b.Log, l.cfg.Node, l.cfg.Log)
	}
	return b, nil
}

// endEpoch writes the gap that belongs after last.
func (l *Ledger) endEpoch(ctx context.Context, last *events.UseBatch) error {
	gap, lost := missingEnd(last, events.At(l.cfg.Now()))
	if !lost {
		return nil
	}
	if _, err := l.publish(ctx, &gap); err != nil {
		return err
	}
	l.gaps.Add(1)
	l.cfg.Logger.WarnContext(ctx, "the epoch before ended without a close record: its end is recorded as a gap",
		slog.Int64("epoch", gap.Epoch), slog.Uint64("first", gap.First))
	return nil
}

// missingEnd returns the gap that belongs after last, the last message of an
// epoch, when the node starts anew; lost is false when the epoch is complete as it
// stands.
func missingEnd(last *events.UseBatch, now events.Time) (gap events.UseBatch, lost bool) {
	if last.Kind == events.BatchClose || last.Kind == events.BatchGap && last.Count == 0 {
		return gap, false
	}
	return events.UseBatch{Log: last.Log, Node: last.Node, Epoch: last.Epoch, Kind: events.BatchGap,
		First: last.First + last.Len(), Note: "the node stopped without closing its epoch",
		Since: last.LastTime(), Until: max(last.LastTime(), now)}, true
}

// tail returns the last message of this node; it tries until ctx ends.
func (l *Ledger) tail(ctx context.Context) (m events.UseMessage, ok bool, err error) {
	for delay := firstDelay; ; delay = l.pause(ctx, delay) {
		if ctx.Err() != nil {
			return m, false, ctx.Err()
		}
		if m, ok, err = l.cfg.Sink.Tail(ctx, l.cfg.Node); err == nil {
			return m, ok, nil
		}
		l.failed(ctx, "read the last use record", err)
	}
}

// ended returns Run's error for err. After a conflict with another process it
// closes the ledger for good, and says so to those who ask Ready.
func (l *Ledger) ended(err error) error {
	var fenced *events.FencedError
	if !errors.As(err, &fenced) {
		return err
	}
	since := fenced.Last.Stored
	if b, err := l.read(&fenced.Last); err == nil && b.Epoch != l.epochNow() {
		since = events.At(time.UnixMicro(b.Epoch))
	}
	err = fmt.Errorf("%w: node %s since %s: give each process a node id of its own", events.ErrFenced, l.cfg.Node, since)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setOpenLocked(false)
	l.fenced = err
	return fmt.Errorf("ledger: %w; this process answers nothing more, and the %d decisions that it held are in the gap that the other one recorded",
		err, l.buffered())
}

func (l *Ledger) epochNow() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.epoch
}
