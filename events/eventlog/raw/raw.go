// Package raw reads the streams of a log message by message, as they are stored,
// for backups and for checks. It decodes nothing, and shares no code with the
// clients of package eventlog: what one of them overlooks, the other may see.
package raw

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/backup"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// Log is what the server says of a log.
type Log struct {
	ID       events.LogID
	Restored []events.Ancestor
	Streams  []backup.Extent // in the order of backup.Streams; without roots
}

// Describe asks where the streams begin and end. The end of KT_LIFE is asked for
// last, so that it holds every event that a use or a read refers to. It refuses a
// log whose restore is not finished.
func Describe(ctx context.Context, nc *nats.Conn) (l Log, err error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return l, err
	}
	names := backup.Streams()
	l.Streams = make([]backup.Extent, len(names))
	for i := len(names) - 1; i >= 0; i-- {
		s, err := js.Stream(ctx, names[i])
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			return l, fmt.Errorf("the server has no stream %s: it holds no log of Keytrail, or has lost a part of it", names[i])
		}
		if err != nil {
			return l, fmt.Errorf("stream %s: %w: %w", names[i], events.ErrUnavailable, err)
		}
		info := s.CachedInfo()
		id, err := streams.Identity(&info.Config)
		if err != nil {
			return l, err
		}
		if l.ID != id && !l.ID.IsZero() {
			return l, fmt.Errorf("stream %s belongs to log %s, and another to log %s: the server holds parts of two logs", names[i], id, l.ID)
		}
		l.ID = id
		if l.Restored, err = streams.Restored(&info.Config); err != nil {
			return l, err
		}
		first := uint64(1)
		if names[i] == backup.Use { // of which retention takes the oldest
			first = max(1, info.State.FirstSeq)
		}
		l.Streams[i] = backup.Extent{Stream: names[i], First: first, Last: max(info.State.LastSeq, first-1)}
	}
	return l, nil
}

const (
	batchMessages = 256
	batchBytes    = 4 << 20
	patience      = 2 * time.Second  // for one answer
	stuck         = 20 * time.Second // without a message: longer than an election
)

// Each hands the messages of an extent to f, in order. A message that the stream's
// leader does not have is a *backup.Fault, unless it is at the beginning of KT_USE,
// where retention took it: first says where the messages that f got begin.
// Other errors: events.ErrUnavailable, and f's own.
func Each(ctx context.Context, nc *nats.Conn, e backup.Extent, f func(*backup.Message) error) (first uint64, err error) {
	next, since := e.First, time.Now()
	first = next
	for next <= e.Last {
		before := next
		err := get(ctx, nc, e.Stream, next, func(m *backup.Message) error {
			if m.Seq != next || next > e.Last {
				return errElsewhere
			}
			next++
			return f(m)
		})
		if next > before {
			since = time.Now()
		}
		if final := (*callerError)(nil); errors.As(err, &final) {
			return first, final.error
		}
		if ctx.Err() != nil {
			return first, ctx.Err()
		}
		if next > before || next > e.Last {
			continue
		}
		gone, leaderErr := missing(ctx, nc, e.Stream, next)
		switch {
		case leaderErr == nil && gone && e.Stream == backup.Use && next == first:
			if next, leaderErr = firstOf(ctx, nc, e.Stream); leaderErr == nil && next > first {
				first = next
				continue
			}
			next = first
		case leaderErr == nil && gone:
			return first, &backup.Fault{Stream: e.Stream, Seq: next, Reason: "missing: it is gone from the log, or cannot be read from its store"}
		}
		if time.Since(since) > stuck {
			return first, fmt.Errorf("read %s from %d: %w: %w", e.Stream, next, events.ErrUnavailable, errors.Join(err, leaderErr))
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return first, nil
}

// errElsewhere says that another message came than the one that was asked for.
var errElsewhere = errors.New("no replica gave the next message")

// callerError is an error of who takes the messages.
type callerError struct{ error }

// get asks any replica for the messages from seq on.
func get(ctx context.Context, nc *nats.Conn, stream string, seq uint64, f func(*backup.Message) error) error {
	inbox := nc.NewInbox()
	ch := make(chan *nats.Msg, batchMessages+1)
	sub, err := nc.ChanSubscribe(inbox, ch)
	if err != nil {
		return err
	}
	defer sub.Unsubscribe()
	body, err := json.Marshal(map[string]uint64{"seq": seq, "batch": batchMessages, "max_bytes": batchBytes})
	if err != nil {
		return err
	}
	if err := nc.PublishRequest("$JS.API.DIRECT.GET."+stream, inbox, body); err != nil {
		return err
	}
	quiet := time.NewTimer(patience)
	defer quiet.Stop()
	for {
		quiet.Reset(patience)
		select {
		case m := <-ch:
			if status := m.Header.Get("Status"); status != "" && last(m, "Nats-Stream") == "" {
				if status == "204" || status == "404" {
					return nil
				}
				return fmt.Errorf("direct get of %s: %s %s", stream, status, m.Header.Get("Description"))
			}
			msg, err := message(m, stream)
			if err != nil {
				return err
			}
			if err := f(&msg); errors.Is(err, errElsewhere) {
				return err
			} else if err != nil {
				return &callerError{err}
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-quiet.C:
			return nats.ErrTimeout
		}
	}
}

// last returns what the server says in a header: it appends to what the message was
// stored with.
func last(m *nats.Msg, header string) string {
	if v := m.Header[header]; len(v) > 0 {
		return v[len(v)-1]
	}
	return ""
}

func message(m *nats.Msg, stream string) (backup.Message, error) {
	seq, err := strconv.ParseUint(last(m, "Nats-Sequence"), 10, 64)
	at, terr := time.Parse(time.RFC3339Nano, last(m, "Nats-Time-Stamp"))
	if last(m, "Nats-Stream") != stream || err != nil || terr != nil {
		return backup.Message{}, fmt.Errorf("direct get of %s: an answer without its place", stream)
	}
	return backup.Message{Stream: stream, Seq: seq, Stored: at.UnixNano(), Subject: last(m, "Nats-Subject"), Data: m.Data}, nil
}

// missing asks the stream's leader whether it lacks a message.
func missing(ctx context.Context, nc *nats.Conn, stream string, seq uint64) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m, err := nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+stream, fmt.Appendf(nil, `{"seq":%d}`, seq))
	if err != nil {
		return false, err
	}
	var a struct {
		Error *struct {
			ErrCode int    `json:"err_code"`
			Text    string `json:"description"`
		} `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &a); err != nil {
		return false, err
	}
	const noMessage = 10037
	if a.Error != nil && a.Error.ErrCode != noMessage {
		return false, fmt.Errorf("message %d of %s: %s", seq, stream, a.Error.Text)
	}
	return a.Error != nil, nil
}

// firstOf asks where a stream begins now.
func firstOf(ctx context.Context, nc *nats.Conn, stream string) (uint64, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return 0, err
	}
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return 0, err
	}
	return s.CachedInfo().State.FirstSeq, nil
}
