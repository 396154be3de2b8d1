package eventlog

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/keytrail/keytrail/events"
)

// get reads messages directly from any replica, in order, and hands each to f.
// It returns nil when the answer is complete, also when it is empty; what is
// still missing after that the caller asks for again. It needs no consumer, so
// that it works for a verifier too.
func (l *Log) get(ctx context.Context, stream string, req getRequest, f func(*stored) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	inbox := l.nc.NewInbox()
	sub, err := l.nc.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	defer sub.Unsubscribe()
	if err := sub.SetPendingLimits(-1, -1); err != nil { // the request bounds the answer
		return err
	}
	body := fmt.Appendf(nil, `{"seq":%d,"batch":%d,"max_bytes":%d}`, req.Seq, req.Batch, req.MaxBytes)
	if req.NextFor != "" {
		body = fmt.Appendf(nil, `{"seq":%d,"next_by_subj":%q,"batch":%d,"max_bytes":%d}`, req.Seq, req.NextFor, req.Batch, req.MaxBytes)
	}
	if err := l.nc.PublishRequest(l.api+"DIRECT.GET."+stream, inbox, body); err != nil {
		return err
	}
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return err
		}
		if status := m.Header.Get("Status"); status != "" {
			switch status {
			case "204", "404": // the end, nothing there
				return nil
			case "503":
				return nats.ErrNoResponders
			}
			return fmt.Errorf("direct get of %s: %s %s", stream, status, m.Header.Get("Description"))
		}
		s, err := fromReply(m)
		if err != nil {
			return err
		}
		if err := f(&s); err != nil {
			return err
		}
	}
}

// How much one request of a bulk read asks for: enough to hide the round trip,
// little enough to hold in memory.
const (
	bulkMessages = 4096
	bulkBytes    = 16 << 20
	chunkEvents  = 256
)

// errBehind says that a bulk read made no progress.
var errBehind = errors.New("no replica gave the next event")

// replay reads events from next to last and hands them to apply in order, in
// chunks; it returns the sequence after the last one applied, also with an
// error. Decoding runs on all processors while one goroutine reads and the
// caller's applies. Error errBehind, or one of the connection: try again from
// there. A *CorruptError, or apply's own error, is final.
func (l *Log) replay(ctx context.Context, next, last events.Seq, apply func([]events.Recorded) error) (events.Seq, error) {
	type chunk struct {
		msgs []stored
		out  []events.Recorded
		err  error
		done chan struct{}
	}
	workers := runtime.GOMAXPROCS(0)
	g, ctx := errgroup.WithContext(ctx)
	queue := make(chan *chunk, 2*workers) // in order of sequence
	todo := make(chan *chunk, 2*workers)  // the same chunks, for whoever is free
	g.Go(func() error {                   // reader
		defer close(queue)
		defer close(todo)
		c := &chunk{done: make(chan struct{})}
		put := func() error {
			if len(c.msgs) == 0 {
				return nil
			}
			for _, ch := range []chan *chunk{todo, queue} {
				select {
				case ch <- c:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			c = &chunk{done: make(chan struct{}), msgs: make([]stored, 0, chunkEvents)}
			return nil
		}
		from := next
		for from <= last {
			start := from
			err := l.get(ctx, lifeStream, getRequest{Seq: from, Batch: bulkMessages, MaxBytes: bulkBytes}, func(s *stored) error {
				if s.seq != from {
					return errBehind
				}
				from++
				c.msgs = append(c.msgs, *s)
				if len(c.msgs) < chunkEvents {
					return nil
				}
				return put()
			})
			if perr := put(); perr != nil {
				return perr
			}
			if err == nil && from == start {
				err = errBehind
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			for c := range todo {
				c.out = make([]events.Recorded, len(c.msgs))
				for i := range c.msgs {
					if c.out[i], c.err = c.msgs[i].decode(); c.err != nil {
						c.out = c.out[:i]
						break
					}
				}
				close(c.done)
			}
			return nil
		})
	}
	var final error
	for c := range queue {
		<-c.done
		if final != nil {
			continue
		}
		if len(c.out) > 0 {
			if final = apply(c.out); final == nil {
				next += events.Seq(len(c.out))
			}
		}
		if final == nil {
			final = c.err
		}
	}
	if err := g.Wait(); final == nil {
		final = err
	}
	return next, final
}

// missing asks the leader, after a read that made no progress, whether event
// seq is there: a *CorruptError when it is not, nil when it is (another replica
// is behind) or the leader does not answer.
func (l *Log) missing(ctx context.Context, seq events.Seq) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var first *stored
	first, err := l.leaderGet(ctx, lifeStream, getRequest{Seq: seq})
	if err != nil || first != nil {
		return nil
	}
	return &events.CorruptError{Seq: seq, Reason: fmt.Sprintf("event %d is gone from the log or cannot be read from its store. "+
		"Stop here, keep the store directory as it is, and restore the log from its archive mirror or a backup", seq)}
}
