package api

import (
	"net/http"
	"strings"

	"github.com/keytrail/keytrail/events"
)

// Endpoint says what one route accepts. What it does not name is refused: a
// parameter, a body, a list that is longer.
type Endpoint struct {
	Pattern string // method and path, as http.ServeMux takes them
	Scope   string // of the built-in keyspace, that the caller must hold; for Routes.Handle
	Query   string // names of the query parameters, separated by spaces
	Body    Body   // whether there is a body
	Bounds  Bounds // of the body
}

// Body says whether an endpoint takes a body.
type Body int

// The kinds of bodies.
const (
	NoBody       Body = iota // a body is refused
	OptionalBody             // Request.Decode leaves its target alone where there is none
	RequiredBody
)

// Request is a request whose path, query and body have been read.
type Request struct {
	*http.Request
	Who   events.Principal // the caller; zero at an open endpoint
	Query Query

	endpoint *Endpoint
	body     requestBody
	caller   *Caller // nil at an open endpoint
}

// Record puts the caller's use on the record with the outcome that err means,
// where that is not what serve returns (Caller.Record).
func (r *Request) Record(err error) { r.caller.Record(err) }

// Recheck is Caller.Recheck: an answer that streams asks it now and then.
func (r *Request) Recheck() error { return r.caller.Recheck() }

// Decode reads the JSON body into v, strictly (see decode). The error is a
// *Problem that names the member where it can.
func (r *Request) Decode(v any) error {
	if len(r.body.text) == 0 && r.endpoint.Body == OptionalBody {
		return nil
	}
	return decode(r.body.text, v, &r.endpoint.Bounds)
}

// Routes registers endpoints that are for callers with an operator key.
type Routes struct {
	Mux  *http.ServeMux
	Auth Authenticator

	// Fail answers an error of a request. Who is zero when the caller was not let
	// in. Default: Write.
	Fail func(w http.ResponseWriter, r *Request, err error)
}

// Handle registers serve for the endpoint. The whole request is read before the
// caller is authenticated, so that serve acts on the caller's present power,
// however slowly the body came; only a caller whose key the node knows may send a
// body. What serve returns as an error is answered, so it must not have written.
//
// A request that holds a secret beside its credential is refused (screen).
//
// The caller's use goes on the record with its outcome before the first byte of
// the answer, whether serve writes one, returns an error, panics, or loses its
// client.
func (rs *Routes) Handle(e Endpoint, serve func(w http.ResponseWriter, r *Request) error) {
	fail := rs.Fail
	if fail == nil {
		fail = func(w http.ResponseWriter, r *Request, err error) { Write(w, r.Request, err) }
	}
	e.handle(rs.Mux, func(w http.ResponseWriter, r *Request) {
		var unread error
		if rs.Auth.Knows(r.Request) {
			defer r.body.release()
			unread = r.read(&bodies.known)
		}
		caller, err := rs.Auth.Authenticate(r.Request, e.Scope, e.Pattern)
		r.Who, r.caller = caller.Principal, caller
		if err == nil {
			defer caller.Record(nil) // also when serve panics
			if err = unread; err == nil {
				err = r.screen(rs.Auth)
			}
			if err == nil {
				err = serve(&recordingWriter{w, caller}, r)
			}
			caller.Record(err)
		}
		if err != nil {
			fail(w, r, err)
		}
	})
}

// HandleOpen registers serve for an endpoint that takes no operator key.
func HandleOpen(mux *http.ServeMux, e Endpoint, serve func(w http.ResponseWriter, r *Request) error) {
	e.handle(mux, func(w http.ResponseWriter, r *Request) {
		defer r.body.release()
		err := r.read(&bodies.open)
		if err == nil {
			err = serve(w, r)
		}
		if err != nil {
			Write(w, r.Request, err)
		}
	})
}

func (e *Endpoint) handle(mux *http.ServeMux, serve func(http.ResponseWriter, *Request)) {
	mux.HandleFunc(e.Pattern, func(w http.ResponseWriter, r *http.Request) {
		serve(w, &Request{Request: r, endpoint: e})
	})
}

// read reads the query and the body, which held counts. The caller releases the body at
// the end of the request.
func (r *Request) read(held *budget) (err error) {
	e := r.endpoint
	if err := r.body.read(r.Request, held); err != nil {
		return err
	}
	switch {
	case len(r.body.text) == 0:
	case e.Body == NoBody:
		return Errorf(http.StatusBadRequest, "bad_body", "this endpoint takes no body")
	default:
		if err := checkMedia(r.Header); err != nil {
			return err
		}
	}
	if r.URL.RawQuery != "" {
		r.Query, err = ParseQuery(r.URL.RawQuery, strings.Fields(e.Query)...)
	}
	return err
}
