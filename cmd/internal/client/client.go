// Package client speaks HTTP to Keytrail's endpoints for the command line.
package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/api"
)

// Client calls one base URL with one operator key.
type Client struct {
	Base string        // "http://127.0.0.1:7070"
	Key  events.Secret // sent as a bearer token; zero sends none
	HTTP *http.Client  // http.DefaultClient if nil
}

// maxAnswer bounds what a JSON answer may weigh, in bytes.
const maxAnswer = 64 << 20

// Do sends in (nil for no body) as JSON and reads the answer into out (nil to
// drop it). An answer other than 2xx is returned as a *api.Problem. Writes carry
// an Idempotency-Key when the caller's header gives one.
func (c *Client) Do(ctx context.Context, method, path string, query url.Values, header http.Header, in, out any) error {
	resp, err := c.Send(ctx, method, path, query, header, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", c.shown(), err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("the answer of %s is not what this command expects (is it Keytrail, of this version?): %w", c.shown(), err)
	}
	return nil
}

// Send is Do for answers that are streamed: the caller closes the body.
func (c *Client) Send(ctx context.Context, method, path string, query url.Values, header http.Header, in any) (*http.Response, error) {
	resp, err := c.send(ctx, method, path, query, header, in)
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return nil, fmt.Errorf("interrupted before %s had answered", c.shown())
	}
	if failed := (*url.Error)(nil); errors.As(err, &failed) {
		return nil, fmt.Errorf("cannot reach Keytrail at %s: %w; start it with `keytrail up`, or name it with --url or KEYTRAIL_URL", c.shown(), err)
	}
	return resp, err
}

// Get is Send for a process that asks another one: the error is what happened.
func (c *Client) Get(ctx context.Context, path string) (io.ReadCloser, error) {
	resp, err := c.send(ctx, http.MethodGet, path, nil, nil, nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

func (c *Client) send(ctx context.Context, method, path string, query url.Values, header http.Header, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in, json.Deterministic(true))
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	u := strings.TrimSuffix(c.Base, "/") + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, fmt.Errorf("--url: want a URL as http://127.0.0.1:7070")
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if !c.Key.IsZero() {
		req.Header.Set("Authorization", "Bearer "+c.Key.Reveal())
	}
	req.Header.Set("User-Agent", "keytrail-cli")
	hc := c.HTTP
	if hc == nil {
		hc = http.DefaultClient
	}
	resp, err := hc.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, problem(resp)
}

// shown is the base URL as a message may have it: without a password.
func (c *Client) shown() string {
	u, err := url.Parse(c.Base)
	if err != nil {
		return "its address"
	}
	return u.Redacted()
}

// problem reads an error answer; one that is no problem document becomes one.
func problem(resp *http.Response) error {
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	p := new(api.Problem)
	if json.Unmarshal(b, p) != nil || p.Code == "" {
		return api.Errorf(resp.StatusCode, "unexpected_answer", "HTTP %s", resp.Status)
	}
	return p
}
