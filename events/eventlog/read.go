package eventlog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
)

// get reads messages directly from any replica, in order, and hands each to f.
// It returns nil when the answer is complete, also when it is empty; what is
// still missing after that the caller asks for again. It needs no consumer, so
// that it works for a verifier too.
func (l *Log) get(ctx context.Context, stream string, req getRequest, f func(*stored) error) error {
	inbox := l.nc.NewInbox()
	ch := make(chan *nats.Msg, req.Batch+1) // the whole answer fits: nothing is dropped while f is slow
	sub, err := l.nc.ChanSubscribe(inbox, ch)
	if err != nil {
		return err
	}
	defer sub.Unsubscribe()
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	if err := l.nc.PublishRequest(l.api+"DIRECT.GET."+stream, inbox, body); err != nil {
		return err
	}
	quiet := time.NewTimer(patience)
	defer quiet.Stop()
	for {
		var m *nats.Msg
		select {
		case m = <-ch:
		default:
			quiet.Reset(patience)
			select {
			case m = <-ch:
			case <-ctx.Done():
				return ctx.Err()
			case <-quiet.C:
				return nats.ErrTimeout
			}
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
		s, err := fromReply(m, stream)
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
	queue := make(chan *chunk, 2*workers) // in order of sequence
	todo := make(chan *chunk, 2*workers)  // the same chunks, for whoever is free
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	read := func() error {
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
		for from := next; from <= last; {
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
	}
	var wg sync.WaitGroup
	var readErr error // owned by the reader until wg.Wait
	wg.Go(func() {
		defer close(queue)
		defer close(todo)
		readErr = read()
	})
	for range workers {
		wg.Go(func() {
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
		})
	}
	var final error
	for c := range queue {
		<-c.done
		n := len(c.out)
		if final == nil && n > 0 {
			if final = apply(c.out); final == nil {
				next += events.Seq(n)
			}
		}
		if final == nil {
			final = c.err
		}
		if final != nil {
			cancel() // the rest of the queue is only emptied
		}
	}
	wg.Wait()
	if final == nil {
		final = readErr
	}
	return next, final
}

// missing asks the leader, after a read that made no progress, whether event
// seq is there: a *CorruptError when it is not, nil when it is (another replica
// is behind) or the leader does not answer.
func (l *Log) missing(ctx context.Context, seq events.Seq) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	first, err := l.leaderGet(ctx, lifeStream, getRequest{Seq: seq})
	if err != nil || first != nil {
		return nil
	}
	return &events.CorruptError{Seq: seq, Reason: fmt.Sprintf("event %d is gone from the log or cannot be read from its store. "+
		"Stop here, keep the store directory as it is, and restore the log from its archive mirror or a backup", seq)}
}
