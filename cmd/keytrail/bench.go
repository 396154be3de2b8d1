package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/cmd/client"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// The bounds of a bench: it is a load on real verifiers and on their ledger.
const (
	maxBenchTime    = 5 * time.Minute
	maxBenchClients = 256
	maxBenchKeys    = 1000
)

// benchKeyspace is the keyspace of all benches but those of limits that are not local: none
// can be removed.
const benchKeyspace events.KeyspaceID = "keytrail-bench"

// keyspaceFor returns the keyspace whose limits are of the mode.
func keyspaceFor(mode keyspace.LimitsMode) events.KeyspaceID {
	if !mode.Exact() {
		return benchKeyspace
	}
	return benchKeyspace + "-" + events.KeyspaceID(strings.ReplaceAll(string(mode), "_", "-"))
}

const (
	benchTitle   = "keytrail bench" // tells it from a keyspace of the operator's with this name
	benchScope   = "read"
	benchKeyLife = "1h" // a key ends by itself when a bench is killed
)

// benchPatience is how long a bench waits for what a sound deployment does within
// moments: an answer of control, a verifier that applies a key, the removal.
// Between two looks it pauses for benchPause.
const (
	benchPatience = time.Minute
	benchPause    = 20 * time.Millisecond
)

// benchRemains is the last paragraph of the help of every bench.
const benchRemains = `It makes keys of its own in the keyspace keytrail-bench, in a tenant of its own, and
revokes them when it ends, also after Ctrl-C or a failure. The keyspace, and the events
and uses of that tenant, stay: nothing is ever removed from the record. Without --remote
only a deployment on the loopback interface is loaded.`

func (a *app) benchCmd() *cobra.Command {
	c := &cobra.Command{Use: "bench", Short: "Measure a deployment: verifications, revocations, limits, the record",
		Long: `Measure a running deployment. Every figure stands beside a floor that was measured in
the same run, because machines differ: read the ratios.

` + benchRemains + `

The benchmarks of the code itself: go test -run '^$' -bench . ./...`}
	c.AddCommand(a.benchVerify(), a.benchRevoke(), a.benchLimits(), a.benchIngest(), a.benchBareHandler())
	return c
}

// benchFlags are the flags of every bench.
type benchFlags struct {
	verifiers []string
	clients   int
	length    time.Duration
	remote    bool

	mode keyspace.LimitsMode // of the keyspace
}

func (f *benchFlags) register(c *cobra.Command, clients string) {
	c.Args = none
	c.Long += "\n\n" + benchRemains
	flags := c.Flags()
	flags.StringSliceVar(&f.verifiers, "verifier", nil, "address of a verifier, as http://127.0.0.1:7071; may be given several times (default: KEYTRAIL_VERIFY_URL, or --url)")
	flags.IntVar(&f.clients, "clients", f.clients, fmt.Sprintf("%s, at most %d", clients, maxBenchClients))
	flags.DurationVar(&f.length, "time", f.length, fmt.Sprintf("for how long, at most %s", maxBenchTime))
	flags.BoolVar(&f.remote, "remote", false, "load a deployment that is not on this machine")
}

// bench is one run of one bench.
type bench struct {
	benchFlags
	app     *app
	control *client.Client
	load    *http.Client // of the verifiers
	tenant  events.TenantID
	space   events.KeyspaceID
	own     *ownNodes    // a deployment of its own; nil = it loads another's
	faults  bool         // break it
	made    atomic.Int64 // keys
}

// benchReport is what a bench has measured. It is what --json shows.
type benchReport interface {
	print(w *tabwriter.Writer)
	// verdict says what must not be, nil where the deployment did as it promises.
	verdict() error
}

var errInterrupted = errors.New("interrupted: nothing is shown of what was measured")

// bench runs measure on the deployment that the flags name.
func (a *app) bench(c *cobra.Command, f *benchFlags, measure func(ctx context.Context, b *bench) (benchReport, error)) error {
	if err := f.check(); err != nil {
		return err
	}
	control, err := a.client("")
	if err != nil {
		return err
	}
	b := &bench{benchFlags: *f, app: a, control: control, space: keyspaceFor(f.mode), tenant: events.TenantID("run-" + strings.ToLower(rand.Text()[:16]))}
	if len(b.verifiers) == 0 {
		b.verifiers = []string{env("KEYTRAIL_VERIFY_URL", a.url)}
	}
	if err := b.mayLoad(); err != nil {
		return err
	}
	return b.run(c.Context(), measure)
}

func (f *benchFlags) check() error {
	if f.clients > maxBenchClients || f.length > maxBenchTime {
		return usageError{fmt.Errorf("want at most %d --clients and at most %s of --time", maxBenchClients, maxBenchTime)}
	}
	return nil
}

// run makes the keyspace, runs measure, removes what can be removed, and shows the report.
func (b *bench) run(ctx context.Context, measure func(ctx context.Context, b *bench) (benchReport, error)) error {
	a := b.app
	b.load = benchLoader(b.clients)
	defer b.load.CloseIdleConnections()
	if err := b.define(ctx); err != nil {
		return err
	}
	report, err := measure(ctx, b)
	if ctx.Err() != nil {
		err = errInterrupted
	}
	removed := b.remove(ctx)
	if err != nil {
		return errors.Join(err, removed)
	}
	if a.json {
		err = a.printJSON(map[string]any{"data": report})
	} else {
		w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
		report.print(w)
		err = w.Flush()
	}
	return errors.Join(err, report.verdict(), removed)
}

// benchLoader returns the client that loads verifiers. It follows no redirect: that could
// lead to another machine, and takes the secret along.
func benchLoader(clients int) *http.Client {
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			MaxIdleConnsPerHost: clients, DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		},
	}
}

// mayLoad checks the addresses. None of them is repeated whole: it may hold a password.
func (b *bench) mayLoad() error {
	for i, v := range b.verifiers {
		b.verifiers[i] = strings.TrimSuffix(v, "/")
		if u, err := url.Parse(v); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return usageError{errors.New("--verifier (KEYTRAIL_VERIFY_URL): want a URL as http://127.0.0.1:7071")}
		}
	}
	for _, base := range append([]string{b.control.Base, env("KEYTRAIL_AUDIT_URL", b.app.url)}, b.verifiers...) {
		if !b.remote && !isLoopback(base) {
			return usageError{fmt.Errorf("%s is not on this machine: --remote says that you may load it", host(base))}
		}
	}
	return nil
}

func isLoopback(base string) bool {
	u, err := url.Parse(base)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || err == nil && ip.IsLoopback()
}

// host returns host and port of an address.
func host(base string) string {
	u, err := url.Parse(base)
	if err != nil {
		return "the address"
	}
	return line(u.Host)
}

// call does one request to control.
func (b *bench) call(ctx context.Context, method, path string, query url.Values, header http.Header, in, out any) error {
	return askPatiently(ctx, b.control, method, path, query, header, in, out)
}

// askPatiently does one request, and again while the role answers that it cannot. It is
// not cut off: what it makes must be there when the bench removes it.
func askPatiently(ctx context.Context, cl *client.Client, method, path string, query url.Values, header http.Header, in, out any) error {
	for until := time.Now().Add(benchPatience); ; {
		asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), benchPatience)
		err := cl.Do(asking, method, path, query, header, in, out)
		cancel()
		if p := new(client.Problem); err == nil || !errors.As(err, &p) || !passes(err) || ctx.Err() != nil || time.Now().After(until) {
			return err
		}
		pauseFor(ctx, askAgain)
	}
}

// between is the check of a flag that counts.
func between(flag string, n, least, most int) error {
	if n < least || n > most {
		return usageError{fmt.Errorf("--%s: want %d to %d", flag, least, most)}
	}
	return nil
}

// microseconds prints so many of them, rounded as far as nobody compares.
func microseconds(n int64) string {
	d := time.Duration(n) * time.Microsecond
	switch {
	case d >= time.Second:
		d = d.Round(time.Millisecond)
	case d >= 10*time.Millisecond:
		d = d.Round(10 * time.Microsecond)
	}
	return d.String()
}

// perSecond prints a rate.
func perSecond(rate float64) string { return fmt.Sprintf("%.0f", rate) }

// heading prints the first line of a report, and the head of its table.
func heading(w io.Writer, text string, columns ...string) {
	fmt.Fprintf(w, "%s\n\n%s\n", text, cells(columns...))
}
