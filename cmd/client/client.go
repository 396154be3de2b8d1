// Package client calls Keytrail's HTTP endpoints, for programs that do not embed a
// verifier, and for the command line.
//
//	program ─> CLIENT ─HTTP─> control (keys), verifier (decisions), auditor (the record)
//
// CreateKey, RevokeKey, Verify, Uses and Events are what programs do most. Do reaches every
// endpoint of the OpenAPI document (/openapi.json). An error answer is a *Problem.
//
//   - A request is repeated only where that is safe, and only after a 503: one that reads,
//     and one with an Idempotency-Key. CreateKey and RevokeKey have one. Verify has none,
//     because each decision is a use.
//   - No error holds a secret. A redirect is not followed: it would hand the key, or the
//     secret that is asked about, to another address. An HTTP of your own with a
//     CheckRedirect decides for itself.
//
// Read on in this order: client.go, problem.go, calls.go.
package client

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
)

// Client calls one base URL with one operator key. Its fields are not changed once it is
// in use; then it is safe for concurrent use.
type Client struct {
	Base string        // "http://127.0.0.1:7070"
	Key  events.Secret // sent as a bearer token; zero sends none
	HTTP *http.Client  // how it is sent; a redirect is followed only if its CheckRedirect says so

	// Patience is for how long a request that is safe to repeat is repeated while it is
	// answered with 503, after as long as the answer says (Retry-After) or a second. 0:
	// none is.
	Patience time.Duration
	// UserAgent names the program on the record of its operator's calls. Default
	// "keytrail-client".
	UserAgent string
}

// The headers of requests that may be repeated, and of the answer to a repetition.
const (
	IdempotencyHeader = "Idempotency-Key"
	ReplayedHeader    = "Idempotent-Replayed"
)

// maxAnswer bounds what a JSON answer may weigh, in bytes.
const maxAnswer = 64 << 20

// direct is the default of Client.HTTP.
var direct = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// Do sends in (nil for no body) as JSON and reads the answer into out (nil to
// drop it). The error is a *Problem for an answer other than 2xx, and of the class
// ErrUnreached when there is none.
func (c *Client) Do(ctx context.Context, method, path string, query url.Values, header http.Header, in, out any) error {
	_, err := c.do(ctx, method, path, query, header, in, out)
	return err
}

func (c *Client) do(ctx context.Context, method, path string, query url.Values, header http.Header, in, out any) (http.Header, error) {
	resp, err := c.Send(ctx, method, path, query, header, in)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", c.shown(), err)
	}
	if out == nil {
		return resp.Header, nil
	}
	if err := json.Unmarshal(b, out); err != nil { // not told: it may hold what it could not read
		return nil, fmt.Errorf("the answer of %s is not what was expected: is it Keytrail, of this version?", c.shown())
	}
	return resp.Header, nil
}

// Send is Do for answers that are streamed: the caller closes the body.
func (c *Client) Send(ctx context.Context, method, path string, query url.Values, header http.Header, in any) (*http.Response, error) {
	resp, err := c.send(ctx, method, path, query, header, in)
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return nil, fmt.Errorf("interrupted before %s had answered: %w", c.shown(), context.Canceled)
	}
	if failed, ok := errors.AsType[*url.Error](err); ok {
		return nil, &unreached{c.shown(), failed}
	}
	return resp, err
}

// ErrUnreached says that nobody answered at Base. The *url.Error is behind it.
var ErrUnreached = errors.New("cannot reach Keytrail")

type unreached struct {
	base string
	why  *url.Error
}

func (e *unreached) Error() string   { return fmt.Sprintf("%v at %s: %v", ErrUnreached, e.base, e.why) }
func (e *unreached) Unwrap() []error { return []error{ErrUnreached, e.why} }

// hide removes a secret from the error of an answer that could not be read, which may
// repeat a line of it.
func hide(err error, s events.Secret) {
	if failed, ok := errors.AsType[*url.Error](err); ok && !s.IsZero() && strings.Contains(failed.Err.Error(), s.Reveal()) {
		failed.Err = errors.New(strings.ReplaceAll(failed.Err.Error(), s.Reveal(), s.String()))
	}
}

// Get is Send for a process that asks another one: the error is what happened.
func (c *Client) Get(ctx context.Context, path string) (io.ReadCloser, error) {
	resp, err := c.send(ctx, http.MethodGet, path, nil, nil, nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// send sends a request, and again while it is answered with 503 and may be repeated.
func (c *Client) send(ctx context.Context, method, path string, query url.Values, header http.Header, in any) (*http.Response, error) {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in, json.Deterministic(true)); err != nil {
			return nil, errors.New("encode the request: it holds what JSON cannot say") // not told: it may be a secret
		}
	}
	u := strings.TrimSuffix(c.Base, "/") + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	repeatable := method == http.MethodGet || method == http.MethodHead || header.Get(IdempotencyHeader) != ""
	for end := time.Now().Add(c.Patience); ; {
		resp, err := c.once(ctx, method, u, header, body)
		p, _ := errors.AsType[*Problem](err)
		if !repeatable || p == nil || p.Status != http.StatusServiceUnavailable {
			return resp, err
		}
		pause := time.Second
		if p.RetryAfter > 0 {
			pause = p.RetryAfter
		}
		if time.Now().Add(pause).After(end) {
			return resp, err
		}
		wait := time.NewTimer(pause)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return resp, err
		}
	}
}

func (c *Client) once(ctx context.Context, method, u string, header http.Header, body []byte) (*http.Response, error) {
	var in io.Reader
	if body != nil {
		in = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, u, in)
	if err != nil {
		return nil, errors.New("want a base URL as http://127.0.0.1:7070")
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if !c.Key.IsZero() {
		req.Header.Set("Authorization", "Bearer "+c.Key.Reveal())
	}
	req.Header.Set("User-Agent", cmp.Or(c.UserAgent, "keytrail-client"))
	hc := c.HTTP
	if hc == nil {
		hc = direct
	} else if hc.CheckRedirect == nil {
		own := *hc
		own.CheckRedirect = direct.CheckRedirect
		hc = &own
	}
	resp, err := hc.Do(req)
	if err != nil {
		hide(err, c.Key)
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	p := problem(resp)
	p.hide(c.Key)
	return nil, p
}

// shown is the base URL as a message may have it: without a password.
func (c *Client) shown() string {
	u, err := url.Parse(c.Base)
	if err != nil {
		return "its address"
	}
	return u.Redacted()
}
