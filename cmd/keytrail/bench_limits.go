package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// The bounds of a bench of limits.
const (
	maxBenchAsks = 20_000  // a second
	maxPerMinute = 600_000 // with 2 times that, maxBenchAsks
)

// steadyShare is the part of the limit's rate that is asked for steadily: no request of
// it may be refused. falseRefusals is what part of them is refused at the most where the
// deployment keeps its promise.
const (
	steadyShare   = 0.9
	falseRefusals = 0.01
)

// limitPlan is what a bench of limits is told.
type limitPlan struct {
	keyspace.Limit
	times int // of the rate
}

func (p *limitPlan) perSecond() float64 { return float64(p.PerMinute) / 60 }

func (a *app) benchLimits() *cobra.Command {
	f := benchFlags{clients: 16, length: 10 * time.Second}
	p := limitPlan{Limit: keyspace.Limit{PerMinute: 6000, Burst: 100}, times: 10}
	c := &cobra.Command{Use: "limits", Short: "Measure what a rate limit admits in any span of time",
		Long: `Ask about one key with a limit, through all given verifiers in turn. For half the time
at --times its rate: what was admitted in any span of time t is held against
burst + rate x t. For the other half steadily at 90 % of its rate, with another key:
every refusal is a false one.

Today each node counts alone, so that n nodes together admit up to n times the limit.
That is expected, and shown beside what one node may admit. A node that admits more than
its own limit is an error, and so are false refusals of more than 1 %.

A span counts what was asked and answered within it: more may have been admitted in it,
never less.`,
		Example: "  keytrail bench limits --per-minute 6000 --burst 100 --times 10\n  keytrail bench limits --verifier http://127.0.0.1:7071 --verifier http://127.0.0.1:7072 --time 30s",
		RunE: func(c *cobra.Command, _ []string) error {
			err := errors.Join(between("per-minute", int(p.PerMinute), 60, maxPerMinute), between("burst", int(p.Burst), f.clients+1, keyspace.MaxPerMinute),
				between("times", p.times, 2, 100))
			if err != nil {
				return usageError{err}
			}
			if p.perSecond()*float64(p.times) > maxBenchAsks {
				return usageError{fmt.Errorf("--times %d of --per-minute %d: want at most %d requests a second", p.times, p.PerMinute, maxBenchAsks)}
			}
			return a.bench(c, &f, func(ctx context.Context, b *bench) (benchReport, error) { return b.limits(ctx, &p) })
		}}
	c.Flags().Int64Var(&p.PerMinute, "per-minute", p.PerMinute, fmt.Sprintf("tokens a minute, 60 to %d", maxPerMinute))
	c.Flags().Int64Var(&p.Burst, "burst", p.Burst, "tokens at once, more than --clients")
	c.Flags().IntVar(&p.times, "times", p.times, "how many times the rate is asked for, 2 to 100")
	f.register(c, "connections at once")
	return c
}

// limitsReport is what `bench limits` has measured.
type limitsReport struct {
	Mode      string `json:"mode"` // local: each node counts alone
	PerMinute int64  `json:"per_minute"`
	Burst     int64  `json:"burst"`
	Times     int    `json:"times"`
	Clients   int    `json:"clients"`

	Nodes  []admitted `json:"nodes"`  // each run of a node against the limit
	All    admitted   `json:"all"`    // all of them against one limit
	Steady steady     `json:"steady"` // demand below the rate
}

// admitted is what was admitted while more was asked for than the limit allows.
type admitted struct {
	Node           string  `json:"node,omitzero"`
	AskedPerSecond float64 `json:"asked_per_second"`
	tally

	// The span in which most was admitted beyond burst + rate x t, or least was left of
	// that.
	Most span `json:"most"`
}

// span is a span of time: what was admitted in it, and what the limit admits.
type span struct {
	Micros   int64   `json:"us"`
	Admitted int     `json:"admitted"`
	Limit    float64 `json:"limit"`
	OfLimit  float64 `json:"of_limit"`
}

// steady is what became of a demand that the limit allows.
type steady struct {
	AskedPerSecond float64 `json:"asked_per_second"`
	tally
	FalseRefusals float64 `json:"false_refusals"` // by the limit, as a part of what was asked
}

// admission is when an admitted request was sent and answered, since the load began.
type admission struct{ sent, got time.Duration }

// nodeAnswers is what one run of a node has answered.
type nodeAnswers struct {
	tally
	admissions []admission
}

func (b *bench) limits(ctx context.Context, p *limitPlan) (benchReport, error) {
	r := &limitsReport{Mode: "local", PerMinute: p.PerMinute, Burst: p.Burst, Times: p.times, Clients: b.clients}
	began := time.Now()
	defer b.app.progress("asking", int64(b.length), func() int64 { return int64(time.Since(began)) })()
	over := float64(p.times) * p.perSecond()
	nodes, took, err := b.demand(ctx, p, rate.NewLimiter(rate.Limit(over), int(over/10)+1)) // it makes up for late timers
	if err != nil {
		return nil, err
	}
	var all nodeAnswers
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		n := nodes[name]
		r.Nodes = append(r.Nodes, n.held(name, p, took))
		all.add(&n.tally)
		all.admissions = append(all.admissions, n.admissions...)
	}
	r.All = all.held("", p, took)
	// In any span no more arrives than the rate admits, one, and one of each client that was
	// held up before: less than a burst.
	if nodes, took, err = b.demand(ctx, p, rate.NewLimiter(rate.Limit(steadyShare*p.perSecond()), 1)); err != nil {
		return nil, err
	}
	for _, n := range nodes {
		r.Steady.add(&n.tally)
	}
	asked := float64(r.Steady.Allowed + r.Steady.Refused)
	r.Steady.AskedPerSecond = asked / took.Seconds()
	r.Steady.FalseRefusals = float64(r.Steady.Reasons[events.ReasonRateLimited.String()]) / asked
	return r, nil
}

// demand asks about a new key at a pace, for half the time. It returns what each run of
// a node has answered.
func (b *bench) demand(ctx context.Context, p *limitPlan, pace *rate.Limiter) (map[string]*nodeAnswers, time.Duration, error) {
	key, err := b.key(ctx, &p.Limit)
	if err != nil {
		return nil, 0, err
	}
	for _, v := range b.verifiers {
		if _, err := b.allowed(ctx, v, &key); err != nil {
			return nil, 0, err
		}
	}
	ask := body(questionAbout(&key, ""))
	clients := make([]map[string]*nodeAnswers, b.clients)
	l := &load{http: b.load, clients: b.clients, length: b.length / 2, pace: pace,
		ask: func(client, n int) (string, []byte) {
			return b.verifiers[(client+n)%len(b.verifiers)] + "/v1/verify", ask
		},
		see: func(client int, sent, got time.Duration, answer []byte) error {
			d, err := decisionsOf(answer, 1)
			if err != nil {
				return err
			}
			run := "?" // a node whose ledger is not open
			if i := strings.LastIndexByte(d[0].Use, '/'); i > 0 {
				run = d[0].Use[:i]
			}
			if clients[client] == nil {
				clients[client] = map[string]*nodeAnswers{}
			}
			n := clients[client][run]
			if n == nil {
				n = new(nodeAnswers)
				clients[client][run] = n
			}
			if d[0].Allowed {
				n.admissions = append(n.admissions, admission{sent, got})
			}
			_, err = n.count(answer, 1)
			return err
		}}
	took, err := l.run(ctx)
	if err != nil {
		return nil, 0, err
	}
	nodes := map[string]*nodeAnswers{}
	for _, c := range clients {
		for run, n := range c {
			if nodes[run] == nil {
				nodes[run] = new(nodeAnswers)
			}
			nodes[run].add(&n.tally)
			nodes[run].admissions = append(nodes[run].admissions, n.admissions...)
		}
	}
	return nodes, took, nil
}

func (n *nodeAnswers) held(name string, p *limitPlan, took time.Duration) admitted {
	return admitted{Node: name, AskedPerSecond: float64(n.Allowed+n.Refused) / took.Seconds(), tally: n.tally,
		Most: mostAdmitted(n.admissions, p.perSecond(), p.Burst)}
}

// grain is that of the time by which a bucket is filled: two decisions may be this much
// further apart for it than they were.
const grain = time.Millisecond

// mostAdmitted returns the span in which most was admitted beyond burst + rate x t.
//
// Only the client's times are known: a request was admitted somewhere between the two of
// it. In the span from a to b that includes whatever was answered up to b, less whatever
// was sent before a. So the figure is never too high, and what exceeds the limit does
// so for certain. The worst span begins when a request is sent and ends when one is
// answered; one pass finds it, since for each end only the best beginning before it
// counts.
func mostAdmitted(list []admission, perSecond float64, burst int64) (most span) {
	sent, got := make([]time.Duration, len(list)), make([]time.Duration, len(list))
	for i, a := range list {
		sent[i], got[i] = a.sent, a.got
	}
	slices.Sort(sent)
	slices.Sort(got)
	refill := func(d time.Duration) float64 { return perSecond * d.Seconds() }
	begin, next := -1, 0 // of sent: the best beginning so far, and what is not tried yet
	worst := 0.0
	for i, end := range got {
		for ; next < len(sent) && sent[next] <= end; next++ {
			if begin < 0 || refill(sent[next]-sent[begin]) > float64(next-begin) {
				begin = next
			}
		}
		s := span{Micros: (end - sent[begin]).Microseconds(), Admitted: i + 1 - begin, Limit: float64(burst) + refill(end-sent[begin]+grain)}
		if beyond := float64(s.Admitted) - s.Limit; i == 0 || beyond > worst {
			worst = beyond
			s.OfLimit = float64(s.Admitted) / s.Limit
			most = s
		}
	}
	return most
}

func (r *limitsReport) print(w *tabwriter.Writer) {
	heading(w, fmt.Sprintf("a limit of %d a minute and %d at once, asked for at %d times its rate by %d clients; each node counts alone", r.PerMinute, r.Burst, r.Times, r.Clients),
		"", "ASKED/S", "ALLOWED", "REFUSED", "MOST IN", "ADMITTED", "LIMIT", "OF LIMIT")
	row := func(name string, a *admitted) {
		fmt.Fprintln(w, cells(name, perSecond(a.AskedPerSecond), fmt.Sprint(a.Allowed), fmt.Sprint(a.Refused), microseconds(a.Most.Micros),
			fmt.Sprint(a.Most.Admitted), fmt.Sprintf("%.1f", a.Most.Limit), fmt.Sprintf("%.2f", a.Most.OfLimit)))
	}
	for i := range r.Nodes {
		row(nodeName(r.Nodes[i].Node), &r.Nodes[i])
	}
	row("all, against one limit", &r.All)
	s := &r.Steady
	fmt.Fprintln(w, cells(fmt.Sprintf("steady, %.0f %% of the rate", 100*steadyShare), perSecond(s.AskedPerSecond), fmt.Sprint(s.Allowed), fmt.Sprint(s.Refused), "", "", "", ""))
	fmt.Fprintf(w, "\n%d nodes that count alone may admit %d times the limit together; they admitted %.2f times\n", len(r.Nodes), len(r.Nodes), r.All.Most.OfLimit)
	if asked := float64(len(r.Nodes)) * float64(r.PerMinute) / 60; r.All.AskedPerSecond < asked {
		fmt.Fprintf(w, "only %.0f requests a second were asked, and %.0f would be admitted: more --clients, or fewer --per-minute, show more\n", r.All.AskedPerSecond, asked)
	}
	fmt.Fprintf(w, "false refusals at steady demand: %.2f %%\n", 100*s.FalseRefusals)
	for _, t := range []*tally{&r.All.tally, &s.tally} {
		if t.Refused > t.Reasons[events.ReasonRateLimited.String()] {
			fmt.Fprintf(w, "refused for another reason than the limit too: %s\n", t.reasons())
		}
	}
}

// nodeName returns the name of the node whose run it is.
func nodeName(run string) string {
	name, _, _ := strings.Cut(run, "/")
	return name
}

// verdict implements benchReport.
func (r *limitsReport) verdict() error {
	var errs []error
	for i := range r.Nodes {
		if m := &r.Nodes[i].Most; float64(m.Admitted) > m.Limit {
			errs = append(errs, fmt.Errorf("%s admitted %d requests within %s, and its limit allows %.1f", line(nodeName(r.Nodes[i].Node)), m.Admitted, microseconds(m.Micros), m.Limit))
		}
	}
	if r.Steady.FalseRefusals > falseRefusals {
		errs = append(errs, fmt.Errorf("%d of %d requests were refused (%s), and all were within the limit", r.Steady.Refused, r.Steady.Allowed+r.Steady.Refused, r.Steady.reasons()))
	}
	return errors.Join(errs...)
}
