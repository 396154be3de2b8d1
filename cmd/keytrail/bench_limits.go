package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
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
	mode, nodes, faults := string(keyspace.LimitsLocal), 0, false
	c := &cobra.Command{Use: "limits", Short: "Measure what a rate limit admits in any span of time",
		Long: `Ask about one key with a limit, through all given verifiers in turn. For a third of the
time at --times its rate: what was admitted in any span of time t is held against
burst + rate x t. Then steadily at 90 % of its rate, with another key: every refusal is a
false one. Then at the same pace about a key without a limit: what a limit costs.

--mode says for what limits hold in the keyspace that is made for it. With local each
node counts alone: n nodes admit up to n times the limit, and a node that admits more
than its own is an error. With exact all nodes together must admit no more than one
limit. False refusals of more than 1 % are an error in any mode.

With --nodes the bench starts a deployment of its own on this machine and removes it
afterwards: a log, two controls and so many verifiers, each a process. Some of the
verifiers are asked much more often than others. With --faults the control that leases
the tokens is killed in the first third of the time, and two verifiers are cut off from
the log for a while: --time 60s leaves room for another control to take over.

A span counts what was asked and answered within it: more may have been admitted in it,
never less.`,
		Example: "  keytrail bench limits --mode exact --per-minute 6000 --burst 100 --times 10\n  keytrail bench limits --verifier http://127.0.0.1:7071 --verifier http://127.0.0.1:7072 --time 30s",
		RunE: func(c *cobra.Command, _ []string) error {
			err := errors.Join(between("per-minute", int(p.PerMinute), 60, maxPerMinute), between("burst", int(p.Burst), f.clients+1, keyspace.MaxPerMinute),
				between("times", p.times, 2, 100))
			if err != nil {
				return usageError{err}
			}
			f.mode = keyspace.LimitsMode(mode)
			if f.mode != keyspace.LimitsLocal && !f.mode.Exact() {
				return usageError{errors.New("--mode: want local, exact or exact_else_local")}
			}
			if p.perSecond()*float64(p.times) > maxBenchAsks {
				return usageError{fmt.Errorf("--times %d of --per-minute %d: want at most %d requests a second", p.times, p.PerMinute, maxBenchAsks)}
			}
			measure := func(ctx context.Context, b *bench) (benchReport, error) { return b.limits(ctx, &p) }
			switch {
			case nodes == 0 && !faults:
				return a.bench(c, &f, measure)
			case faults && nodes < 3:
				return usageError{errors.New("--faults: want --nodes of 3 at least, a deployment of the bench's own")}
			case nodes < 1 || nodes > maxBenchNodes:
				return usageError{fmt.Errorf("--nodes: want 1 to %d", maxBenchNodes)}
			case len(f.verifiers) > 0 || f.remote:
				return usageError{errors.New("--nodes starts verifiers: want either it, or --verifier and --remote")}
			}
			return a.benchOwn(c, &f, nodes, faults, measure)
		}}
	c.Flags().StringVar(&mode, "mode", mode, "for what limits hold: local, exact or exact_else_local")
	c.Flags().IntVar(&nodes, "nodes", 0, fmt.Sprintf("start a deployment with so many verifiers, at most %d", maxBenchNodes))
	c.Flags().BoolVar(&faults, "faults", false, "kill the allocator of that deployment, and cut two verifiers off")
	c.Flags().Int64Var(&p.PerMinute, "per-minute", p.PerMinute, fmt.Sprintf("tokens a minute, 60 to %d", maxPerMinute))
	c.Flags().Int64Var(&p.Burst, "burst", p.Burst, "tokens at once, more than --clients")
	c.Flags().IntVar(&p.times, "times", p.times, "how many times the rate is asked for, 2 to 100")
	f.register(c, "connections at once")
	return c
}

// limitsReport is what `bench limits` has measured.
type limitsReport struct {
	Mode      keyspace.LimitsMode `json:"mode"` // local: each node counts alone
	PerMinute int64               `json:"per_minute"`
	Burst     int64               `json:"burst"`
	Times     int                 `json:"times"`
	Clients   int                 `json:"clients"`

	Nodes     []admitted `json:"nodes"`      // each run of a node against the limit
	All       admitted   `json:"all"`        // all of them against one limit
	OfAllowed float64    `json:"of_allowed"` // what all of them admitted, as a part of burst + rate x t of the whole time
	Steady    steady     `json:"steady"`     // demand below the rate
	Unlimited steady     `json:"unlimited"`  // the same without a limit
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
	P50Micros     int64   `json:"p50_us"`         // of the answers
	P99Micros     int64   `json:"p99_us"`
}

// admission is when an admitted request was sent and answered, since the load began.
type admission struct{ sent, got time.Duration }

// nodeAnswers is what one run of a node has answered.
type nodeAnswers struct {
	tally
	admissions []admission
	times      []time.Duration
}

func (b *bench) limits(ctx context.Context, p *limitPlan) (benchReport, error) {
	r := &limitsReport{Mode: b.mode, PerMinute: p.PerMinute, Burst: p.Burst, Times: p.times, Clients: b.clients}
	began := time.Now()
	defer b.app.progress("asking", int64(b.length), func() int64 { return int64(time.Since(began)) })()
	over := float64(p.times) * p.perSecond()
	hurt := b.hurt(ctx)
	nodes, took, err := b.demand(ctx, p, &p.Limit, rate.NewLimiter(rate.Limit(over), int(over/10)+1)) // it makes up for late timers
	if err != nil {
		return nil, err
	}
	if err := hurt(); err != nil {
		return nil, err
	}
	var all nodeAnswers
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		n := nodes[name]
		r.Nodes = append(r.Nodes, n.held(name, p, took))
		all.add(n)
	}
	r.All = all.held("", p, took)
	r.OfAllowed = float64(all.Allowed) / (float64(p.Burst) + p.perSecond()*took.Seconds())
	// In any span no more arrives than the rate admits, one, and one of each client that was
	// held up before: less than a burst.
	if r.Steady, err = b.steadily(ctx, p, &p.Limit); err == nil {
		r.Unlimited, err = b.steadily(ctx, p, nil)
	}
	return r, err
}

// steadily asks about a new key with the limit, nil for none, for less than the plan's rate.
func (b *bench) steadily(ctx context.Context, p *limitPlan, limit *keyspace.Limit) (s steady, err error) {
	nodes, took, err := b.demand(ctx, p, limit, rate.NewLimiter(rate.Limit(steadyShare*p.perSecond()), 1))
	if err != nil {
		return s, err
	}
	var all nodeAnswers
	for _, n := range nodes {
		all.add(n)
	}
	s.tally = all.tally
	asked := float64(s.Allowed + s.Refused)
	s.AskedPerSecond = asked / took.Seconds()
	s.FalseRefusals = float64(s.Reasons[events.ReasonRateLimited.String()]) / asked
	slices.Sort(all.times)
	s.P50Micros, s.P99Micros = quantile(all.times, .5).Microseconds(), quantile(all.times, .99).Microseconds()
	return s, nil
}

func (n *nodeAnswers) add(o *nodeAnswers) {
	n.tally.add(&o.tally)
	n.admissions = append(n.admissions, o.admissions...)
	n.times = append(n.times, o.times...)
}

// demand asks about a new key with the limit at a pace, for a third of the time. It returns what each run of
// a node has answered.
func (b *bench) demand(ctx context.Context, p *limitPlan, limit *keyspace.Limit, pace *rate.Limiter) (map[string]*nodeAnswers, time.Duration, error) {
	key, err := b.key(ctx, limit)
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
	l := &load{http: b.load, clients: b.clients, length: b.length / 3, pace: pace,
		ask: func(client, n int) (string, []byte) {
			return b.verifiers[b.turn(client, n)] + "/v1/verify", ask
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
			n.times = append(n.times, got-sent)
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
			nodes[run].add(n)
		}
	}
	return nodes, took, nil
}

// turn returns which verifier is asked: one after the other, and of a deployment of the
// bench's own the first ones more often.
func (b *bench) turn(client, n int) int {
	if b.own == nil {
		return (client + n) % len(b.verifiers)
	}
	x := rand.Float64()
	return int(x * x * float64(len(b.verifiers)))
}

// hurt breaks what --faults breaks, while the load runs. The function that it returns waits
// for the end of that.
func (b *bench) hurt(ctx context.Context) func() error {
	if b.own == nil || !b.faults {
		return func() error { return nil }
	}
	ended := make(chan error, 1)
	go func() {
		pauseFor(ctx, b.length/12)
		left, err := b.own.hurt(ctx, b.length/12)
		if err == nil {
			b.control.Base = left
		}
		ended <- err
	}()
	return func() error { return <-ended }
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
	heading(w, fmt.Sprintf("a limit of %d a minute and %d at once, asked for at %d times its rate by %d clients; limits are %s", r.PerMinute, r.Burst, r.Times, r.Clients, r.Mode),
		"", "ASKED/S", "ALLOWED", "REFUSED", "P50", "P99", "MOST IN", "ADMITTED", "LIMIT", "OF LIMIT")
	row := func(name string, a *admitted) {
		fmt.Fprintln(w, cells(name, perSecond(a.AskedPerSecond), fmt.Sprint(a.Allowed), fmt.Sprint(a.Refused), "", "", microseconds(a.Most.Micros),
			fmt.Sprint(a.Most.Admitted), fmt.Sprintf("%.1f", a.Most.Limit), fmt.Sprintf("%.2f", a.Most.OfLimit)))
	}
	for i := range r.Nodes {
		row(nodeName(r.Nodes[i].Node), &r.Nodes[i])
	}
	row("all, against one limit", &r.All)
	s := &r.Steady
	calm := func(name string, s *steady) {
		fmt.Fprintln(w, cells(name, perSecond(s.AskedPerSecond), fmt.Sprint(s.Allowed), fmt.Sprint(s.Refused), microseconds(s.P50Micros), microseconds(s.P99Micros), "", "", "", ""))
	}
	calm(fmt.Sprintf("steady, %.0f %% of the rate", 100*steadyShare), s)
	calm("the same without a limit", &r.Unlimited)
	if r.Mode.Exact() {
		fmt.Fprintf(w, "\n%d nodes admitted %.4f of burst + rate x t together, and in no span more than %.4f\n", len(r.Nodes), r.OfAllowed, r.All.Most.OfLimit)
	} else {
		fmt.Fprintf(w, "\n%d nodes that count alone may admit %d times the limit together; they admitted %.2f times\n", len(r.Nodes), len(r.Nodes), r.All.Most.OfLimit)
		if asked := float64(len(r.Nodes)) * float64(r.PerMinute) / 60; r.All.AskedPerSecond < asked {
			fmt.Fprintf(w, "only %.0f requests a second were asked, and %.0f would be admitted: more --clients, or fewer --per-minute, show more\n", r.All.AskedPerSecond, asked)
		}
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
	if m := &r.All.Most; r.Mode == keyspace.LimitsExact && float64(m.Admitted) > m.Limit {
		errs = append(errs, fmt.Errorf("all nodes together admitted %d requests within %s, and the limit allows %.1f", m.Admitted, microseconds(m.Micros), m.Limit))
	}
	if r.Steady.FalseRefusals > falseRefusals {
		errs = append(errs, fmt.Errorf("%d of %d requests were refused (%s), and all were within the limit", r.Steady.Refused, r.Steady.Allowed+r.Steady.Refused, r.Steady.reasons()))
	}
	return errors.Join(errs...)
}
