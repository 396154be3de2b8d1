package api

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
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

// readBody reads the request's body to its end: at most MaxBody bytes. The error
// is a *Problem. The caller calls release when nothing of the body is used any
// more, whatever readBody returned.
func readBody(r *http.Request, held *budget) (body []byte, release func(), err error) {
	size := 0 // of held
	release = func() { held.give(size); size = 0 }
	if r.Body == nil || r.ContentLength == 0 {
		return nil, release, nil
	}
	if r.ContentLength > MaxBody {
		return nil, release, tooLarge()
	}
	buf := []byte(nil)
	for {
		if len(buf) == cap(buf) {
			next := max(firstBuffer, 2*cap(buf))
			if n := int(r.ContentLength) + 1; n > 0 {
				next = min(next, max(n, cap(buf)+1))
			}
			if next > firstBuffer {
				if !held.take(next - size) {
					return nil, release, Unavailable(1, "too many request bodies are being read; nothing was done")
				}
				size = next
			}
			buf = append(make([]byte, 0, next), buf...)
		}
		n, err := r.Body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case len(buf) > MaxBody:
			return nil, release, tooLarge()
		case err == io.EOF:
			return buf, release, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, release, Errorf(http.StatusRequestTimeout, "body_timeout", "the body did not arrive in time; nothing was done")
		case err != nil:
			return nil, release, Errorf(http.StatusBadRequest, "bad_body", "the body cannot be read")
		}
	}
}

// HoldBody reads the body of a request at an endpoint that takes no operator key,
// for a handler that reads it without bounds: at most MaxBody bytes, which are
// counted with all other bodies. What the handler reads is in memory then. The
// error is a *Problem; release is called at the end of the request.
func HoldBody(r *http.Request) (release func(), err error) {
	body, release, err := readBody(r, &bodies.open)
	if err == nil {
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	return release, err
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
