// Package api holds what Keytrail's own endpoints share: the strict reading of
// requests, RFC 9457 problem details, and the shape of answers. It decides nothing.
//
// # Reading
//
// Every endpoint says what it takes (Endpoint), and one reader reads it: path,
// query, headers and body. The reader refuses a value that is broken or empty, and
// never takes it for absent. Otherwise an unset variable, a list that became null
// or a body in another encoding would grant more, or do more, than the caller
// meant. Sizes, lists, depth and the bytes of all
// bodies together are bounded before anything is made of them.
//
// What a keyspace answers to its own clients is the keyspace's data; failure.go
// only puts it on the wire.
package api

import (
	"fmt"
	"net/http"
	"net/netip"
	"path"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
)

// WriteJSON answers v as JSON with the given status, without caching.
func WriteJSON(w http.ResponseWriter, r *http.Request, status int, v any) {
	b, err := json.Marshal(v, json.Deterministic(true), jsontext.EscapeForHTML(true))
	if err != nil {
		Write(w, r, fmt.Errorf("encode answer: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(b)
}

// One is the answer that carries one resource; Position is set on writes.
type One struct {
	Data     any              `json:"data"`
	Position *events.Position `json:"position,omitzero"`
}

// List is the answer that carries one page.
type List struct {
	Data       any     `json:"data"`
	NextCursor *string `json:"next_cursor"` // null on the last page
}

// RequestIDHeader carries the id that joins the entries of one request.
const RequestIDHeader = "X-Request-Id"

// Handler is what every request passes first. It gives the request an id ("req_"
// and 26 characters), which the answer repeats; a client's own id is not taken
// over, because it could forge the record. No answer may be taken for a page or
// run as one. A path that is not in its shortest form is refused, where
// http.ServeMux would redirect and clients would repeat a PUT as a GET.
func Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := []string{events.NewRequestID().String()}
		r.Header[RequestIDHeader] = id
		h := w.Header()
		h[RequestIDHeader] = id
		h["X-Content-Type-Options"] = nosniff
		h["Content-Security-Policy"] = noContent
		if r.Method != http.MethodConnect && !clean(r.URL.Path) {
			Write(w, r, Errorf(http.StatusBadRequest, "bad_path", "want a path without //, . and .. in it"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

var (
	nosniff   = []string{"nosniff"}
	noContent = []string{"default-src 'none'; frame-ancestors 'none'; sandbox"}
)

// clean reports whether the path is one that http.ServeMux takes as it is.
func clean(p string) bool {
	return p == "/" || p != "" && p[0] == '/' && path.Clean(p) == strings.TrimSuffix(p, "/")
}

// RequestID returns the id that Handler gave.
func RequestID(r *http.Request) string {
	if id := r.Header[RequestIDHeader]; len(id) > 0 {
		return id[0]
	}
	return ""
}

// ClientIP returns the address of the peer of the connection, unmapped.
func ClientIP(r *http.Request) netip.Addr {
	var a netip.Addr // none
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		a = peer.Addr()
	} else if ip, err := netip.ParseAddr(r.RemoteAddr); err == nil { // a middleware may leave the port out
		a = ip
	}
	return a.Unmap().WithZone("")
}

// Plain returns the first max characters of what a client says of itself as text
// that an event may hold: valid UTF-8 of characters that can be seen.
func Plain(s string, max int) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	for i := range s {
		if max == 0 {
			return s[:i]
		}
		max--
	}
	return s
}
