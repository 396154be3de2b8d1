package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"
)

// The bounds of a bench: it is a load on a real verifier and on its ledger.
const (
	maxBenchTime    = 5 * time.Minute
	maxBenchClients = 256
)

func (a *app) benchCmd() *cobra.Command {
	var keyspace, scope string
	var clients int
	var length time.Duration
	var remote bool
	var secret secretFlag
	c := &cobra.Command{Use: "bench", Short: "Measure verifications a second; each one is a use on the record",
		Long: `Send verifications of one key over HTTP from a few clients for a few seconds and
print how many were answered and how fast. It writes: every verification is a use
in the ledger of the key's tenant, tens of thousands of them, and they stay there.
Take a key of a tenant that is there for tests; one that is denied is not measured. Beside it the same clients call /healthz, which does nothing: the ratio
says what verifying costs on this machine. Without --remote only a verifier on the
loopback interface is loaded.

The benchmarks of the code itself: go test -run '^$' -bench . ./...`,
		Example: "  keytrail bench --keyspace scribe-sight --scope read --time 5s --secret-file secret.txt",
		RunE: func(c *cobra.Command, _ []string) error {
			key, err := secret.read(a.in)
			if err != nil {
				return err
			}
			if key.IsZero() {
				return usageError{fmt.Errorf("want the secret of a key: --secret-file, or KEYTRAIL_SECRET")}
			}
			if clients < 1 || clients > maxBenchClients || length <= 0 || length > maxBenchTime {
				return usageError{fmt.Errorf("want 1 to %d --clients and at most %s of --time", maxBenchClients, maxBenchTime)}
			}
			cl, err := a.client("KEYTRAIL_VERIFY_URL")
			if err != nil {
				return err
			}
			if !remote && !isLoopback(cl.Base) {
				return usageError{fmt.Errorf("%s is not on this machine: --remote says that you may load it", cl.Base)}
			}
			body := map[string]any{"key": key.Reveal()}
			if keyspace != "" {
				body["keyspace"] = keyspace
			}
			if scope != "" {
				body["scope"] = scope
			}
			b, err := json.Marshal(body, json.Deterministic(true))
			if err != nil {
				return err
			}
			if err := answersAllowed(c.Context(), cl.Base+"/v1/verify", b); err != nil {
				return err
			}
			bare, err := load(c.Context(), cl.Base+"/healthz", nil, clients, length/2)
			if err != nil {
				return err
			}
			verify, err := load(c.Context(), cl.Base+"/v1/verify", b, clients, length)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "bare handler  %s\nverify        %s\nratio         %.2f\n", bare, verify, verify.rate()/bare.rate())
			return nil
		}}
	secret.register(c)
	f := c.Flags()
	f.StringVar(&keyspace, "keyspace", "", "the keyspace to ask for")
	f.StringVar(&scope, "scope", "", "the scope to ask for")
	f.IntVar(&clients, "clients", 8, "connections at once")
	f.DurationVar(&length, "time", 5*time.Second, "how long")
	f.BoolVar(&remote, "remote", false, "load a verifier that is not on this machine")
	return c
}

func isLoopback(base string) bool {
	u, err := url.Parse(base)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && ip.IsLoopback()
}

// result is what one load measured.
type result struct {
	times []time.Duration // sorted
	took  time.Duration
}

func (r *result) rate() float64 { return float64(len(r.times)) / r.took.Seconds() }

func (r *result) quantile(q float64) time.Duration {
	return r.times[min(len(r.times)-1, int(q*float64(len(r.times))))]
}

func (r *result) String() string {
	return fmt.Sprintf("%8.0f/s  p50 %v  p99 %v  (%d requests)", r.rate(),
		r.quantile(.5).Round(time.Microsecond), r.quantile(.99).Round(time.Microsecond), len(r.times))
}

// load sends requests from n clients for d. A body makes it a POST.
func load(ctx context.Context, target string, body []byte, n int, d time.Duration) (*result, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	hc := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: n, DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext}}
	defer hc.CloseIdleConnections()
	times := make([][]time.Duration, n)
	errs := make([]error, n)
	start := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for ctx.Err() == nil {
				t := time.Now()
				if err := once(ctx, hc, target, body); err != nil {
					if ctx.Err() == nil {
						errs[i] = err
					}
					return
				}
				times[i] = append(times[i], time.Since(t))
			}
		})
	}
	wg.Wait()
	r := &result{times: slices.Concat(times...), took: time.Since(start)}
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	if len(r.times) == 0 {
		return nil, fmt.Errorf("%s answered nothing within %s", target, d)
	}
	slices.Sort(r.times)
	return r, nil
}

// answersAllowed asks once before the load begins. A refusal is answered sooner than
// an allowance, so its figure would mislead, and tens of thousands of refusals in
// the ledger of a tenant look like an attack.
func answersAllowed(ctx context.Context, target string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var d struct {
		Allowed bool   `json:"allowed"`
		Reason  string `json:"reason"`
	}
	answer, err := ask(ctx, http.DefaultClient, target, body)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, &d); err != nil {
		return fmt.Errorf("%s does not answer as a verifier: %w", target, err)
	}
	if !d.Allowed {
		return fmt.Errorf("the key is denied (%s): nothing was measured; want a key and a question that are allowed", line(d.Reason))
	}
	return nil
}

func once(ctx context.Context, hc *http.Client, target string, body []byte) error {
	_, err := ask(ctx, hc, target, body)
	return err
}

// ask sends one request and returns the answer, of which no more than a megabyte is read.
func ask(ctx context.Context, hc *http.Client, target string, body []byte) ([]byte, error) {
	method, in := http.MethodGet, io.Reader(nil)
	if body != nil {
		method, in = http.MethodPost, bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, in)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := hc.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", strings.TrimSuffix(target, "/"), resp.Status)
	}
	return answer, nil
}
