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
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
)

// get reads messages directly from any replica, in order, and hands each to f.
// It returns nil when the answer is complete, also when it is empty; what is
// still missing after that the caller asks for again. It needs no consumer, so
// that it works for a verifier too.
func (t *transport) get(ctx context.Context, stream string, req getRequest, f func(*stored) error) error {
	return t.replies(ctx, stream, req, func(m *nats.Msg, end bool) error {
		if end {
			return nil
		}
		s, err := fromReply(m, stream)
		if err != nil {
			return err
		}
		return f(&s)
	})
}

// replies makes a direct get and hands each message of the answer to f, and at last
// its end. An answer that has no end is an error.
func (t *transport) replies(ctx context.Context, stream string, req getRequest, f func(m *nats.Msg, end bool) error) error {
	inbox := t.nc.NewInbox()
	ch := make(chan *nats.Msg, req.Batch+1) // the whole answer fits: nothing is dropped while f is slow
	sub, err := t.nc.ChanSubscribe(inbox, ch)
	if err != nil {
		return err
	}
	defer sub.Unsubscribe()
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	if err := t.nc.PublishRequest(t.api+"DIRECT.GET."+stream, inbox, body); err != nil {
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
		// A stored message says its stream, and may have been stored with a Status.
		if status := m.Header.Get("Status"); status != "" && said(m, "Nats-Stream") == "" {
			switch status {
			case "204": // the end
				return f(m, true)
			case "404": // nothing there
				return nil
			case "503":
				return nats.ErrNoResponders
			}
			return fmt.Errorf("direct get of %s: %s %s", stream, status, m.Header.Get("Description"))
		}
		if err := f(m, false); err != nil {
			return err
		}
	}
}

// How much one request of a bulk read asks for, and how many are on their way. The
// server holds the stream's lock while it answers one, so that a large request
// delays every write meanwhile; several small ones hide the round trip as well.
const (
	bulkMessages = 256
	bulkBytes    = 1 << 20
	bulkRequests = 4 // and no more than there are processors to decode
	chunkEvents  = 256
)

// errBehind says that a bulk read made no progress.
var errBehind = errors.New("no replica gave the next event")

// part is one request of a bulk read: the events from first on, n of them.
type part struct {
	first events.Seq
	n     int
	out   []events.Recorded // as far as they were read
	err   error
	done  chan struct{}
}

// replay reads events from next to last and hands them to apply in order, in
// parts; it returns the sequence after the last one applied, also with an error.
// Several requests are on their way, and whoever reads one decodes it: on all
// processors, while the caller's goroutine applies. Error errBehind, or one of the
// connection: try again from there. A *CorruptError, or apply's own error, is final.
// bare is whether to read without headers, as far as that goes.
func (l *Lifecycle) replay(ctx context.Context, next, last events.Seq, bare bool, apply func([]events.Recorded) error) (events.Seq, error) {
	if next > last {
		return next, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	readers := min(bulkRequests, max(2, runtime.GOMAXPROCS(0)), int((last-next)/bulkMessages)+1)
	queue := make(chan *part, readers) // in order of sequence
	todo := make(chan *part, readers)  // the same parts, for whoever is free
	var wg sync.WaitGroup
	from := next
	wg.Go(func() {
		defer close(queue)
		defer close(todo)
		for ; from <= last; from += bulkMessages {
			p := &part{first: from, n: int(min(bulkMessages, last-from+1)), done: make(chan struct{})}
			for _, ch := range []chan *part{todo, queue} {
				select {
				case ch <- p:
				case <-ctx.Done():
					return
				}
			}
		}
	})
	for range readers {
		wg.Go(func() {
			for p := range todo {
				if p.out = make([]events.Recorded, 0, p.n); bare {
					l.readBare(ctx, p)
				}
				p.err = l.readPart(ctx, p)
				close(p.done)
			}
		})
	}
	var final error
	for p := range queue {
		<-p.done
		if final == nil && len(p.out) > 0 {
			if final = apply(p.out); final == nil {
				next += events.Seq(len(p.out))
			}
		}
		if final == nil {
			final = p.err
		}
		if final != nil {
			cancel() // the rest of the queue is only emptied
		}
	}
	wg.Wait()
	if final == nil {
		final = ctx.Err()
	}
	return next, final
}

// readPart reads and decodes what is missing of one part, with as many requests as it
// takes.
func (l *Lifecycle) readPart(ctx context.Context, p *part) error {
	for len(p.out) < p.n {
		before := len(p.out)
		due := p.first + events.Seq(before)
		err := l.get(ctx, l.stream, getRequest{Seq: due, Batch: p.n - before, MaxBytes: bulkBytes}, func(s *stored) error {
			if s.seq != due {
				return errBehind
			}
			due++
			r, err := s.decode()
			if err == nil {
				p.out = append(p.out, r)
			}
			return err
		})
		if err == nil && len(p.out) == before {
			err = errBehind
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// gone reports whether the leader answers that message seq is not there.
func (t *transport) gone(ctx context.Context, stream string, seq events.Seq) bool {
	ctx, cancel := context.WithTimeout(ctx, t.patience)
	defer cancel()
	s, err := t.leaderGet(ctx, stream, getRequest{Seq: seq})
	return err == nil && s == nil
}

// missing asks the leader, after a read that made no progress, whether event
// seq is there: a *CorruptError when it is not, nil when it is (another replica
// is behind) or the leader does not answer.
func (l *Lifecycle) missing(ctx context.Context, seq events.Seq) error {
	gone, err := l.lost(ctx, l.stream, func(*jetstream.StreamInfo) bool { return l.gone(ctx, l.stream, seq) })
	if err != nil || !gone {
		return nil
	}
	return &events.CorruptError{Seq: seq, Reason: fmt.Sprintf("event %d is gone from the log or cannot be read from its store. "+
		"Stop here, keep the store directory as it is, and restore the log from its archive mirror or a backup", seq)}
}
