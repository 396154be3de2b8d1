package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/keytrail/keytrail/events/eventlog/streams"
)

const (
	// writesAtOnce is how many writes to one stream a node may have under way. A node
	// needs one: it waits for each answer. So whatever the speed of the disk, others
	// wait behind this many.
	writesAtOnce = 4
	// writeUnseen is how long a write counts as under way when its answer is not seen.
	writeUnseen = 2 * time.Second
)

// window is the writes of one node to one stream that are under way.
type window struct {
	subjects []byte // how the subjects of the writes begin
	ack      []byte // how the answer to a write of this stream begins
	slots    chan struct{}
}

func newWindow(stream string, subjects []byte) *window {
	return &window{subjects: subjects, ack: fmt.Appendf(nil, `{"stream":"%s"`, stream), slots: make(chan struct{}, writesAtOnce)}
}

var (
	failed   = []byte(`{"error":`)
	unserved = []byte("NATS/1.0 503\r\nNats-Subject: ") // and the subject, and an empty line: nothing answers there
)

// most is the most bytes of an answer that are looked at.
const most = 256

// ends reports whether the answer, with headers or without, ends a write. Each answer
// that nothing answers is of one write to its subject, which took a place of its own; a
// stored message that looks like one has more headers, by the server.
func (w *window) ends(answer []byte, headers bool) bool {
	if !headers {
		return bytes.HasPrefix(answer, w.ack) || bytes.HasPrefix(answer, failed)
	}
	subject, is := bytes.CutPrefix(answer, unserved)
	subject, alone := bytes.CutSuffix(subject, []byte("\r\n\r\n"))
	return is && alone && bytes.HasPrefix(subject, w.subjects) && !bytes.Contains(subject, []byte("\r"))
}

// write is one write under way.
type write struct {
	w    *window
	once sync.Once
}

func (w *write) end() { w.once.Do(func() { <-w.w.slots }) }

// begin waits until another write may be under way; before is called when it has to wait.
func (w *window) begin(ctx context.Context, before func() error) (started *write, waited bool, err error) {
	select {
	case w.slots <- struct{}{}:
	default:
		waited = true
		if err := before(); err != nil {
			return nil, true, err
		}
		select {
		case w.slots <- struct{}{}:
		case <-ctx.Done():
			return nil, true, ctx.Err()
		}
	}
	started = &write{w: w}
	time.AfterFunc(writeUnseen, started.end)
	return started, waited, nil
}

// writes are those of one connection whose answers it awaits, by the subject of the
// answer. An answer ends the oldest of its subject.
//
// A client must not be able to end a write before the server has: it may publish to no
// inbox, and what it can aim there begins in another way. Several subscriptions would
// see one answer several times, so those of one subscription count.
type writes struct {
	mu    sync.Mutex
	byTo  map[string][]*write
	n     int
	sid   string // of the subscription whose answers count; "" = none yet
	ended bool   // that one was: another may take its place once no write is under way
}

func (ws *writes) add(reply []byte, w *write) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if !bytes.HasPrefix(reply, []byte("_INBOX.")) {
		return // nobody awaits it, or where others may write
	}
	if ws.ended && ws.n == 0 {
		ws.sid, ws.ended = "", false
	}
	if ws.n >= 8*writesAtOnce { // left behind by answers that were not seen
		clear(ws.byTo)
		ws.n = 0
	}
	ws.byTo[string(reply)] = append(ws.byTo[string(reply)], w)
	ws.n++
}

func (ws *writes) unsubscribed(args []byte) {
	sid, _, _ := bytes.Cut(args, []byte(" "))
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.ended = ws.ended || ws.sid != "" && string(sid) == ws.sid
}

func (ws *writes) answered(to, sid, answer []byte, headers bool) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	list := ws.byTo[string(to)]
	if len(list) == 0 || ws.sid != "" && string(sid) != ws.sid {
		return
	}
	if !list[0].w.ends(answer, headers) {
		return
	}
	ws.sid = string(sid)
	list[0].end()
	if ws.n--; len(list) == 1 {
		delete(ws.byTo, string(to))
	} else {
		ws.byTo[string(to)] = list[1:]
	}
}

// client writes to a client that must go on reading.
type client struct{ net.Conn }

func (c client) Write(b []byte) (int, error) {
	_ = c.SetWriteDeadline(time.Now().Add(writeTime))
	return c.Conn.Write(b)
}

// answers passes on what the server says. The first PONG tells that the client is let
// in: the server answers PING only after a login that it accepts.
func (s *session) answers() error {
	r, w := bufio.NewReaderSize(s.server, downBuffer), bufio.NewWriterSize(client{s.client}, downBuffer)
	in := false
	for {
		if r.Buffered() == 0 {
			if err := w.Flush(); err != nil {
				return err
			}
		}
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if !in && bytes.HasPrefix(line, []byte("PONG")) {
			in = true
			close(s.authorized)
			if s.trusted.Load() {
				if _, err := w.Write(line); err != nil {
					return err
				}
				if err := w.Flush(); err != nil {
					return err
				}
				_, err := io.Copy(client{s.client}, r)
				return err
			}
		}
		var to, sid []byte
		size, headers := 0, bytes.HasPrefix(line, []byte("HMSG "))
		if headers || bytes.HasPrefix(line, []byte("MSG ")) {
			args := bytes.Fields(line)
			if len(args) < 4 {
				return fmt.Errorf("the server says %q", line)
			}
			if size, err = strconv.Atoi(string(args[len(args)-1])); err != nil || size < 0 || size > 2*streams.MaxPayload {
				return fmt.Errorf("the server says %q", line)
			}
			to, sid = bytes.Clone(args[1]), bytes.Clone(args[2])
		}
		if _, err := w.Write(line); err != nil {
			return err
		}
		if size == 0 && to == nil {
			continue
		}
		answer, err := r.Peek(min(size, most))
		if err != nil {
			return err
		}
		s.writes.answered(to, sid, answer, headers)
		if _, err := io.CopyN(w, r, int64(size)+2); err != nil {
			return err
		}
	}
}
