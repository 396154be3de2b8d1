package api

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
)

// MaxBody is the largest request body that an endpoint reads, in bytes.
const MaxBody = 1 << 20

// maxBodies bounds the large bodies that a process holds at one moment, in bytes. A
// request that would exceed it is answered 503 before more of it is read. A body of
// up to firstBuffer bytes is always read: what those hold together is bounded by
// the connections, as their headers are.
const maxBodies = 16 << 20

// bodies counts the bytes of large bodies that the process holds: those that
// anybody may send, and those of callers with a key. Strangers cannot keep
// operators out.
var bodies struct{ open, known budget }

// budget is a number of bytes of which maxBodies may be taken.
type budget struct{ taken atomic.Int64 }

// take takes n more bytes, or reports false and takes none.
func (b *budget) take(n int) bool {
	if b.taken.Add(int64(n)) <= maxBodies {
		return true
	}
	b.taken.Add(int64(-n))
	return false
}

func (b *budget) give(n int) { b.taken.Add(int64(-n)) }

// firstBuffer is what is allocated for a body before its length is known to be
// real. A client that announces a megabyte and sends nothing costs this much. Any
// one question, and any change of one key, fits.
const firstBuffer = 4 << 10

// buffers are those that wait for the next body: of firstBuffer, twice, four and eight
// times that, which a full batch of questions needs. There is nothing in them: a body may
// hold a secret.
var buffers [4]sync.Pool

// requestBody is the body of a request in memory. The zero value is that of a request whose body
// was not read. Who has read it calls release when nothing of it is used any more.
type requestBody struct {
	text   []byte
	held   *budget
	size   int     // of held
	pool   int     // index of buffers that pooled is of
	pooled *[]byte // what text is the start of; nil = an array of its own
}

// read reads the request's body to its end: at most MaxBody bytes. The error is a
// *Problem.
func (b *requestBody) read(r *http.Request, held *budget) error {
	b.held = held
	if r.Body == nil || r.ContentLength == 0 {
		return nil
	}
	if r.ContentLength > MaxBody {
		return tooLarge()
	}
	for {
		if len(b.text) == cap(b.text) && !b.grow(r.ContentLength) {
			return Unavailable(1, "too many request bodies are being read; nothing was done")
		}
		n, err := r.Body.Read(b.text[len(b.text):cap(b.text)])
		b.text = b.text[:len(b.text)+n]
		switch {
		case len(b.text) > MaxBody:
			return tooLarge()
		case err == io.EOF:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return Errorf(http.StatusRequestTimeout, "body_timeout", "the body did not arrive in time; nothing was done")
		case err != nil:
			return Errorf(http.StatusBadRequest, "bad_body", "the body cannot be read")
		}
	}
}

// grow makes room for as much again as has been read, and not for more than a body of
// length needs, -1 when that is not known. It reports false when held has no room.
func (b *requestBody) grow(length int64) bool {
	was, next := *b, requestBody{held: b.held, size: b.size}
	room := max(firstBuffer, 2*cap(b.text))
	for next.pool < len(buffers) && firstBuffer<<next.pool < room {
		next.pool++
	}
	if next.pool == len(buffers) && length >= 0 {
		room = min(room, max(int(length)+1, cap(b.text)+1))
	}
	if room > firstBuffer {
		if !b.held.take(room - b.size) {
			return false
		}
		next.size = room
	}
	if next.pool < len(buffers) {
		next.pooled, _ = buffers[next.pool].Get().(*[]byte)
		if next.pooled == nil {
			fresh := make([]byte, room)
			next.pooled = &fresh
		}
		next.text = append((*next.pooled)[:0], was.text...)
	} else {
		next.text = append(make([]byte, 0, room), was.text...)
	}
	was.put()
	*b = next
	return true
}

// put gives the buffer back, with nothing in it.
func (b *requestBody) put() {
	if b.pooled != nil {
		clear(b.text)
		buffers[b.pool].Put(b.pooled)
	}
}

// release gives back what the body takes. It may be called again.
func (b *requestBody) release() {
	b.put()
	if b.size > 0 {
		b.held.give(b.size)
	}
	*b = requestBody{}
}

// HoldBody reads the body of a request at an endpoint that takes no operator key,
// for a handler that reads it without bounds: at most MaxBody bytes, which are
// counted with all other bodies. What the handler reads is in memory then. The
// error is a *Problem; release is called at the end of the request.
func HoldBody(r *http.Request) (release func(), err error) {
	b := new(requestBody)
	if err = b.read(r, &bodies.open); err == nil {
		r.Body = io.NopCloser(bytes.NewReader(b.text))
	}
	return b.release, err
}

func tooLarge() *Problem {
	return Errorf(http.StatusRequestEntityTooLarge, "body_too_large", "want a body of at most %d bytes", MaxBody)
}

// checkMedia refuses a body that is not JSON in UTF-8 as it stands. Without a
// Content-Type it is taken for JSON.
func checkMedia(h http.Header) error {
	for _, v := range h.Values("Content-Encoding") {
		if !strings.EqualFold(strings.TrimSpace(v), "identity") {
			return Errorf(http.StatusUnsupportedMediaType, "unsupported_encoding", "want a body without Content-Encoding")
		}
	}
	types := h.Values("Content-Type")
	if len(types) == 0 || len(types) == 1 && types[0] == "application/json" {
		return nil
	}
	if len(types) == 1 {
		t, params, err := mime.ParseMediaType(types[0])
		charset, has := params["charset"]
		if err == nil && t == "application/json" && (len(params) == 0 || len(params) == 1 && has && strings.EqualFold(charset, "utf-8")) {
			return nil
		}
	}
	return Errorf(http.StatusUnsupportedMediaType, "unsupported_media_type", "want Content-Type application/json, in UTF-8")
}
