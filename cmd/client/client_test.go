package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
)

// endpoint answers each request with the next of its answers, and keeps what it was
// asked.
type endpoint struct {
	answers []func(http.ResponseWriter)
	asked   []*http.Request
	bodies  []string
	at      []time.Time
}

// RoundTrip implements http.RoundTripper without a network, for a synctest bubble.
func (e *endpoint) RoundTrip(r *http.Request) (*http.Response, error) {
	body := ""
	if r.Body != nil {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		body = string(b)
	}
	e.asked, e.bodies, e.at = append(e.asked, r), append(e.bodies, body), append(e.at, time.Now())
	if len(e.answers) == 0 {
		return nil, errors.New("nothing listens")
	}
	w := httptest.NewRecorder()
	e.answers[0](w)
	e.answers = e.answers[1:]
	return w.Result(), nil
}

// says makes an answer; header are pairs.
func says(status int, body string, header ...string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

const busy = `{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"the event log cannot be reached","code":"unavailable"}`

func with(e *endpoint, patience time.Duration) *Client {
	return &Client{Base: "http://control", Key: events.NewSecret("op_secret_of_the_operator"), HTTP: &http.Client{Transport: e}, Patience: patience}
}

// A request is repeated only after a 503, only if that is safe, and only for as long as
// the client's patience lasts.
func TestRepeats(t *testing.T) {
	after := func(v string) func(http.ResponseWriter) { return says(503, busy, "Retry-After", v) }
	create := func(ctx context.Context, c *Client) error {
		_, err := c.CreateKey(ctx, "ks", NewKey{Tenant: "acme", Name: "ci"})
		return err
	}
	verify := func(ctx context.Context, c *Client) error { _, err := c.Verify(ctx, Question{}); return err }
	read := func(ctx context.Context, c *Client) error { return c.Do(ctx, "GET", "/v1/keys", nil, nil, nil, nil) }
	write := func(ctx context.Context, c *Client) error {
		return c.Do(ctx, "PUT", "/v1/roles", nil, nil, map[string]any{}, nil)
	}
	made := says(201, `{"data":{"id":"key_1","key":"s"},"position":"p"}`)
	for _, tt := range []struct {
		name     string
		call     func(context.Context, *Client) error
		patience time.Duration
		answers  []func(http.ResponseWriter)
		pauses   []time.Duration // between the requests
		fails    bool
	}{
		{"a creation", create, time.Minute, []func(http.ResponseWriter){after("2"), after("3"), made}, []time.Duration{2 * time.Second, 3 * time.Second}, false},
		{"no time said", create, time.Minute, []func(http.ResponseWriter){says(503, busy), made}, []time.Duration{time.Second}, false},
		{"a read", read, time.Minute, []func(http.ResponseWriter){after("1"), says(200, "{}")}, []time.Duration{time.Second}, false},
		{"no patience", create, 0, []func(http.ResponseWriter){after("1"), made}, nil, true},
		{"longer than the patience", create, time.Minute, []func(http.ResponseWriter){after("61"), made}, nil, true},
		{"the patience ends", read, 5 * time.Second, []func(http.ResponseWriter){after("2"), after("2"), after("2"), after("2")}, []time.Duration{2 * time.Second, 2 * time.Second}, true},
		{"a decision", verify, time.Minute, []func(http.ResponseWriter){after("1"), says(200, "{}")}, nil, true},
		{"a write without a key", write, time.Minute, []func(http.ResponseWriter){after("1"), says(200, "{}")}, nil, true},
		{"another refusal", create, time.Minute, []func(http.ResponseWriter){says(429, busy, "Retry-After", "1"), made}, nil, true},
		{"nobody answers", create, time.Minute, nil, nil, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			e := &endpoint{answers: tt.answers}
			if err := tt.call(t.Context(), with(e, tt.patience)); (err != nil) != tt.fails {
				t.Errorf("%s: %v", tt.name, err)
			}
			if len(e.asked) != len(tt.pauses)+1 {
				t.Fatalf("%s: %d requests, want %d", tt.name, len(e.asked), len(tt.pauses)+1)
			}
			for i, want := range tt.pauses {
				if got := e.at[i+1].Sub(e.at[i]); got != want {
					t.Errorf("%s: asked again after %v, want %v", tt.name, got, want)
				}
				if e.bodies[i+1] != e.bodies[i] || e.asked[i+1].Header.Get(IdempotencyHeader) != e.asked[i].Header.Get(IdempotencyHeader) {
					t.Errorf("%s: the repetition is another request", tt.name)
				}
			}
		})
	}
}

// A pause ends with the context.
func TestPauseEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{answers: []func(http.ResponseWriter){says(503, busy, "Retry-After", "30")}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := with(e, time.Minute).Do(ctx, "GET", "/v1/keys", nil, nil, nil, nil)
		if p, ok := errors.AsType[*Problem](err); !ok || p.Status != 503 || time.Since(e.at[0]) != time.Second {
			t.Errorf("%v after %v", err, time.Since(e.at[0]))
		}
	})
}

func TestCreateKey(t *testing.T) {
	e := &endpoint{answers: []func(http.ResponseWriter){
		says(201, `{"data":{"id":"key_1","key":"sk_1","keyspace":"ks","tenant":"acme","environment":null,"limit":null,"expires_at":null,"revoked_at":null,"created_at":"2026-01-02T03:04:05.678Z","scopes":["read"],"rev":1},"position":"p1"}`),
		says(200, `{"data":{"id":"key_1"},"position":"p1"}`, ReplayedHeader, "true"),
	}}
	c := with(e, 0)
	k, err := c.CreateKey(t.Context(), "a/b", NewKey{Tenant: "acme", Name: "ci", Scopes: []string{"read"}, Idempotency: "once"})
	if err != nil || k.ID != "key_1" || k.Secret.Reveal() != "sk_1" || k.Position != "p1" || !k.ExpiresAt.IsZero() || k.CreatedAt.IsZero() || k.Rev != 1 {
		t.Errorf("%+v, %v", k, err)
	}
	if text := fmt.Sprintf("%v %+v %#v", k, k, k); strings.Contains(text, "sk_1") {
		t.Errorf("the secret is printed: %s", text)
	}
	if r := e.asked[0]; r.URL.EscapedPath() != "/v1/keyspaces/a%2Fb/keys" || r.Header.Get(IdempotencyHeader) != "once" ||
		r.Header.Get("Authorization") != "Bearer op_secret_of_the_operator" || e.bodies[0] != `{"tenant":"acme","name":"ci","scopes":["read"]}` {
		t.Errorf("%s %v %s", r.URL, r.Header, e.bodies[0])
	}
	// The answer with the secret was lost.
	if k, err = c.CreateKey(t.Context(), "ks", NewKey{Tenant: "acme", Name: "ci", Idempotency: "once"}); !errors.Is(err, ErrSecretLost) || k.ID != "key_1" || !strings.Contains(err.Error(), "key_1") {
		t.Errorf("%+v, %v", k, err)
	}
}

// A verifier is asked without the operator's key, and only for what the question says.
func TestVerify(t *testing.T) {
	e := &endpoint{answers: []func(http.ResponseWriter){
		says(200, `{"allowed":false,"reason":"rate_limited","status":429,"key_id":"key_1","scopes":["read"],"limit":{"limit":2,"remaining":0,"reset":2,"scope":"key"},"retry_after":1,"position":"p","use_id":"n/1/2"}`),
		says(200, `{"allowed":true,"reason":"ok","status":200,"position":"p"}`),
	}}
	c := with(e, 0)
	d, err := c.Verify(t.Context(), Question{Secret: events.NewSecret("sk_1"), Keyspace: "ks", Scope: "read", Resource: events.Resource{Kind: "project", ID: "p1"},
		IP: "203.0.113.7", Scheme: "https", Cost: 2, MinPosition: "p", MaxStaleness: 1500 * time.Millisecond})
	if err != nil || d.Allowed || d.Reason != "rate_limited" || *d.Limit != (LimitState{2, 0, 2, "key"}) || d.RetryAfter != 1 || d.UseID != "n/1/2" {
		t.Errorf("%+v, %v", d, err)
	}
	if d, err := c.Verify(t.Context(), Question{}); err != nil || !d.Allowed {
		t.Errorf("%+v, %v", d, err)
	}
	want := []string{`{"cost":2,"ip":"203.0.113.7","key":"sk_1","keyspace":"ks","max_staleness":"1.5s","min_position":"p","resource":{"kind":"project","id":"p1"},"scheme":"https","scope":"read"}`, `{"key":""}`}
	for i := range want {
		if e.bodies[i] != want[i] || e.asked[i].Header.Get("Authorization") != "" {
			t.Errorf("asked %s with %q, want %s", e.bodies[i], e.asked[i].Header.Get("Authorization"), want[i])
		}
	}
}

// A walk over the record goes to its end, or to the row that the caller wants, and ends
// with the error that it meets.
func TestUses(t *testing.T) {
	page := func(ids, next string) func(http.ResponseWriter) {
		return says(200, `{"data":[`+ids+`],"next_cursor":`+next+`}`)
	}
	first := page(`{"id":"n/1/3","time":"2026-01-02T03:04:05Z","allowed":true,"reason":"ok","cost":1},{"id":"n/1/2","resource":{"kind":"project","id":"p1"}}`, `"c1"`)
	for _, tt := range []struct {
		answers []func(http.ResponseWriter)
		stop    int
		rows    int
		err     string
	}{
		{[]func(http.ResponseWriter){first, page(`{"id":"n/1/1"}`, "null")}, 0, 3, ""},
		{[]func(http.ResponseWriter){first, page(`{"id":"n/1/1"}`, "null")}, 1, 1, ""},
		{[]func(http.ResponseWriter){first, says(503, busy)}, 0, 2, "unavailable"},
		{[]func(http.ResponseWriter){first, first}, 0, 4, "the page before"},
	} {
		e := &endpoint{answers: tt.answers}
		rows, failed := 0, ""
		for u, err := range with(e, 0).Uses(t.Context(), map[string]string{"tenant": "acme"}) {
			if err != nil {
				failed = err.Error()
				continue
			}
			if rows++; u.ID == "" {
				t.Error("a row without an id")
			}
			if rows == tt.stop {
				break
			}
		}
		if rows != tt.rows || !strings.Contains(failed, tt.err) || (failed == "") != (tt.err == "") {
			t.Errorf("%d rows, %q; want %d, %q", rows, failed, tt.rows, tt.err)
		}
		for i, r := range e.asked {
			if want := []string{"tenant=acme", "cursor=c1&tenant=acme"}[i]; r.URL.RawQuery != want {
				t.Errorf("asked for %s, want %s", r.URL.RawQuery, want)
			}
		}
	}
	e := &endpoint{answers: []func(http.ResponseWriter){page(`{"id":"1","type":"key.revoked","actor":{"kind":"key","id":"key_9"},"data":{"code":"superseded"}}`, "null")}}
	for ev, err := range with(e, 0).Events(t.Context(), nil) {
		if err != nil || ev.Type != "key.revoked" || ev.Actor.ID != "key_9" || string(ev.Data) != `{"code":"superseded"}` {
			t.Errorf("%+v, %v", ev, err)
		}
	}
}

// No error holds the operator's key, the secret that is asked about, or the password of
// an address, whoever answers.
func TestErrorsHoldNoSecret(t *testing.T) {
	const operator, key = "op_secret_of_the_operator", "sk_live_secret_of_a_key"
	echo := `{"type":"about:blank","title":"` + operator + `","status":400,"detail":"` + operator + ` and ` + key + `","code":"` + key + `","errors":[{"field":"` + key + `","code":"x","message":"` + operator + ` ` + key + `"}]}`
	for _, answers := range [][]func(http.ResponseWriter){
		nil, {says(400, echo)}, {says(502, operator+key)}, {says(200, `{"allowed":"`+key+operator+`"}`)}, {says(200, `{"`+key+`":1,"`+key+`":2}`)},
		{says(307, operator, "Location", "http://elsewhere/?"+key)}, {says(200, key)},
		{says(307, "", "Location", "http://["+key+operator)},
	} {
		e := &endpoint{answers: answers}
		c := with(e, 0)
		c.Base = "http://user:password@control"
		_, err := c.Verify(t.Context(), Question{Secret: events.NewSecret(key)})
		e.answers = answers
		err2 := c.Do(t.Context(), "GET", "/v1/keys", nil, nil, nil, new(Decision))
		for sent, err := range map[string]error{key: err, operator: err2} {
			if err == nil {
				t.Fatalf("%d answers: no error", len(answers))
			}
			text := fmt.Sprintf("%v %+v", err, err)
			if p, ok := errors.AsType[*Problem](err); ok {
				text += fmt.Sprintf("%+v", *p)
			}
			for _, secret := range []string{sent, "password"} {
				if strings.Contains(text, secret) {
					t.Errorf("the error holds %s: %s", secret, text)
				}
			}
		}
	}
	// A redirect is not followed.
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") }))
	defer elsewhere.Close()
	there := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer there.Close()
	for _, own := range []*http.Client{nil, {}} {
		_, err := (&Client{Base: there.URL, HTTP: own}).Verify(t.Context(), Question{Secret: events.NewSecret(key)})
		if p, ok := errors.AsType[*Problem](err); !ok || p.Status != http.StatusTemporaryRedirect || p.Code != CodeUnexpected || !strings.Contains(p.Detail, "not followed") {
			t.Errorf("a redirect: %v", err)
		}
	}
}

func TestUnreached(t *testing.T) {
	err := with(&endpoint{}, 0).Do(t.Context(), "GET", "/", nil, nil, nil, nil)
	if !errors.Is(err, ErrUnreached) || !strings.Contains(err.Error(), "http://control") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := with(&endpoint{}, 0).Do(ctx, "GET", "/", nil, nil, nil, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func FuzzRetryAfter(f *testing.F) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, v := range []string{"", "0", "2", "-1", "1.5", "99999999999999999999", "Fri, 02 Jan 2026 03:04:35 GMT", "Fri, 02 Jan 1970 03:04:35 GMT"} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		if d := retryAfter(v, now); d < 0 || d > maxRetryAfter {
			t.Errorf("%q is %v", v, d)
		}
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for v, want := range map[string]time.Duration{"": 0, "2": 2 * time.Second, "-1": 0, "1.5": 0, "4000000000": maxRetryAfter,
		"Fri, 02 Jan 2026 03:04:35 GMT": 30 * time.Second, "Thu, 01 Jan 2026 03:04:35 GMT": 0} {
		if got := retryAfter(v, now); got != want {
			t.Errorf("%q is %v, want %v", v, got, want)
		}
	}
}
