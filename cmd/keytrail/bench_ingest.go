package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/time/rate"

	"github.com/keytrail/keytrail/cmd/client"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/verifier"
)

// maxBenchUses bounds the pace of a bench of the record, in uses a second.
const maxBenchUses = 100_000

// lookEvery is how often the record is asked: each time is on the record too.
const lookEvery = 250 * time.Millisecond

func (a *app) benchIngest() *cobra.Command {
	f := benchFlags{clients: 4, length: 10 * time.Second}
	var keys, pace int
	c := &cobra.Command{Use: "ingest", Short: "Measure how soon uses are in the record, and count them",
		Long: fmt.Sprintf(`Verify keys at a pace, in batches of %d, and ask the record every %s how many uses it
has counted (GET /v1/audit/usage; each time is on the record too). It ends when all are
seen, or when for %s no more are. Every use must be counted, once, and the ledger must
have no new gap; anything else is an error.

The delay of a batch is from the verifier's answer to the first answer of the record that
counts as many uses, so it includes the time to the next look. OF VERIFIED is how many of
the uses a second that are verified are seen a second, until the last one is.`, verifier.MaxBatch, lookEvery, benchPatience),
		Example: "  keytrail bench ingest --rate 10000 --time 10s\n  KEYTRAIL_AUDIT_URL=http://127.0.0.1:7072 keytrail bench ingest --verifier http://127.0.0.1:7071 --json",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := errors.Join(between("keys", keys, 1, maxBenchKeys), between("rate", pace, verifier.MaxBatch, maxBenchUses)); err != nil {
				return usageError{err}
			}
			return a.bench(c, &f, func(ctx context.Context, b *bench) (benchReport, error) { return b.ingest(ctx, keys, pace) })
		}}
	c.Flags().IntVar(&keys, "keys", 100, fmt.Sprintf("how many keys are asked about in turn, at most %d", maxBenchKeys))
	c.Flags().IntVar(&pace, "rate", 10_000, fmt.Sprintf("uses a second, %d to %d", verifier.MaxBatch, maxBenchUses))
	f.register(c, "connections at once")
	return c
}

// ingestReport is what `bench ingest` has measured.
type ingestReport struct {
	Clients int `json:"clients"`
	Keys    int `json:"keys"`
	Rate    int `json:"rate"` // uses a second that were asked for

	Verified usesVerified `json:"verified"`
	Seen     usesSeen     `json:"seen"`

	// Uses that were answered and are not on the record, negative for too many there, and
	// the new gaps of the ledger, of any tenant. All must be 0.
	Missing   int    `json:"missing"`
	Differing int    `json:"differing"` // on the record with another outcome than was answered
	Gaps      uint64 `json:"gaps"`
}

// usesVerified is what verifiers have answered.
type usesVerified struct {
	Uses      int     `json:"uses"`
	PerSecond float64 `json:"per_second"`
	tally
}

// usesSeen is what the record has counted.
type usesSeen struct {
	Uses       int     `json:"uses"`
	PerSecond  float64 `json:"per_second"`
	P50Micros  int64   `json:"p50_us"` // of the delay
	P99Micros  int64   `json:"p99_us"`
	MaxMicros  int64   `json:"max_us"`
	OfVerified float64 `json:"per_second_of_verified"`
	Looks      int     `json:"looks"`
}

// usesAnswered are the uses of one answered batch; at is since the load began.
type usesAnswered struct {
	at time.Duration
	n  int
}

// look is one answer of the record: how many uses of the run it had counted.
type look struct {
	at    time.Duration
	total int
}

// recorded is what the record says about the tenant of the run.
type recorded struct {
	uses uses
	gaps gaps
}

// record asks for the counts of the run.
func (b *bench) record(ctx context.Context, cl *client.Client) (r recorded, err error) {
	var ans struct {
		Data []struct {
			Reason string `json:"reason"`
			Count  int    `json:"count"`
		} `json:"data"`
		Gaps gaps `json:"gaps"`
	}
	// Two days at the most, of a few reasons: that is one page.
	query := url.Values{"keyspace": {string(b.space)}, "tenant": {string(b.tenant)}, "per": {"day"}, "limit": {"100"}}
	if err := askPatiently(ctx, cl, http.MethodGet, "/v1/audit/usage", query, nil, nil, &ans); err != nil {
		return r, err
	}
	r.uses, r.gaps = uses{}, ans.Gaps
	for _, c := range ans.Data {
		r.uses[c.Reason] += c.Count
	}
	return r, nil
}

// watch asks the record until done says so.
func (b *bench) watch(ctx context.Context, cl *client.Client, began time.Time, looks *[]look, done func(total int) bool) (r recorded, err error) {
	for {
		if r, err = b.record(ctx, cl); err != nil {
			return r, err
		}
		total := r.uses.total()
		*looks = append(*looks, look{time.Since(began), total})
		if done(total) {
			return r, nil
		}
		if pauseFor(ctx, lookEvery); ctx.Err() != nil {
			return r, errInterrupted
		}
	}
}

func (b *bench) ingest(ctx context.Context, n, pace int) (benchReport, error) {
	cl, err := b.app.client("KEYTRAIL_AUDIT_URL")
	if err != nil {
		return nil, err
	}
	keys, asked, err := b.keys(ctx, n)
	if err != nil {
		return nil, err
	}
	first := asked.total() // uses before the load
	before, err := b.record(ctx, cl)
	if err != nil {
		return nil, err
	}
	_, batch := questions(keys)
	answers, tallies := make([][]usesAnswered, b.clients), make([]tally, b.clients)
	began := time.Now()
	l := &load{http: b.load, clients: b.clients, length: b.length, pace: rate.NewLimiter(rate.Limit(float64(pace)/verifier.MaxBatch), pace/verifier.MaxBatch/10+1),
		ask: func(client, n int) (string, []byte) {
			return b.verifiers[(client+n)%len(b.verifiers)] + "/v1/verify/batch", batch[(client+n)%len(batch)]
		},
		see: func(client int, _, _ time.Duration, answer []byte) error {
			t := &tallies[client]
			was := t.numbered.total()
			_, err := t.count(answer, verifier.MaxBatch)
			answers[client] = append(answers[client], usesAnswered{time.Since(began), t.numbered.total() - was})
			return err
		}}
	endProgress := b.app.progress("verifying", int64(b.length), func() int64 { return int64(time.Since(began)) })
	defer func() { endProgress() }()
	var looks []look
	loaded := make(chan struct{})
	var looking sync.WaitGroup
	var lookErr error
	looking.Go(func() {
		_, lookErr = b.watch(ctx, cl, began, &looks, func(int) bool {
			select {
			case <-loaded:
				return true
			default:
				return false
			}
		})
	})
	took, err := l.run(ctx)
	close(loaded)
	looking.Wait()
	if err := errors.Join(err, lookErr); err != nil {
		return nil, err
	}
	r := &ingestReport{Clients: b.clients, Keys: n, Rate: pace}
	for i := range tallies {
		r.Verified.add(&tallies[i])
	}
	asked = asked.add(r.Verified.numbered)
	r.Verified.Uses = r.Verified.numbered.total()
	r.Verified.PerSecond = float64(r.Verified.Uses) / took.Seconds()

	var most atomic.Int64
	most.Store(int64(looks[len(looks)-1].total))
	moved := time.Now()
	endProgress()
	endProgress = b.app.progress("waiting for the record", int64(asked.total()), most.Load)
	now, err := b.watch(ctx, cl, began, &looks, func(total int) bool {
		if most.Swap(int64(total)) < int64(total) {
			moved = time.Now()
		}
		return total >= asked.total() || time.Since(moved) > benchPatience
	})
	if err != nil {
		return nil, err
	}
	r.compare(asked, now.uses)
	r.Gaps = now.gaps.Count - min(before.gaps.Count, now.gaps.Count)
	r.Seen = seenOf(slices.Concat(answers...), looks, first)
	if r.Verified.Uses > 0 { // 0: no verifier had a ledger
		r.Seen.OfVerified = r.Seen.PerSecond / r.Verified.PerSecond
	}
	return r, nil
}

// compare holds what is on the record against what was answered. Where the answer is
// verifier_stale the record may have the decision as it was made before that (Node.Decide).
func (r *ingestReport) compare(answered, record uses) {
	r.Missing = answered.total() - record.total()
	for reason := range (uses{}).add(answered).add(record) {
		r.Differing += max(record[reason]-answered[reason], 0)
	}
	r.Differing = max(r.Differing-answered[events.ReasonVerifierStale.String()]+min(r.Missing, 0), 0)
}

// seenOf returns when the uses of answered batches were seen: each with the first look
// that counts as many uses as had been answered up to it, beside the first ones, which
// were there before. A batch that was never seen has no delay.
func seenOf(answers []usesAnswered, looks []look, first int) (s usesSeen) {
	slices.SortFunc(answers, func(a, b usesAnswered) int { return int(a.at - b.at) })
	var delays []time.Duration
	answered, i := first, 0
	var last time.Duration
	for _, l := range looks {
		for ; i < len(answers) && answered+answers[i].n <= l.total; i++ {
			answered += answers[i].n
			delays = append(delays, max(l.at-answers[i].at, 0))
			last = l.at
		}
	}
	slices.Sort(delays)
	s = usesSeen{Uses: answered - first, P50Micros: quantile(delays, .5).Microseconds(), P99Micros: quantile(delays, .99).Microseconds(),
		MaxMicros: quantile(delays, 1).Microseconds(), Looks: len(looks)}
	if last > 0 {
		s.PerSecond = float64(s.Uses) / last.Seconds()
	}
	return s
}

func (r *ingestReport) print(w *tabwriter.Writer) {
	heading(w, fmt.Sprintf("uses of %d keys, %d a second asked for by %d clients; the record was asked %d times", r.Keys, r.Rate, r.Clients, r.Seen.Looks),
		"", "USES", "A SECOND", "ALLOWED", "REFUSED", "DELAY P50", "P99", "MAX", "OF VERIFIED")
	v, s := &r.Verified, &r.Seen
	fmt.Fprintln(w, cells("verified", fmt.Sprint(v.Uses), perSecond(v.PerSecond), fmt.Sprint(v.Allowed), fmt.Sprint(v.Refused), "", "", "", ""))
	fmt.Fprintln(w, cells("seen in the record", fmt.Sprint(s.Uses), perSecond(s.PerSecond), "", "", microseconds(s.P50Micros), microseconds(s.P99Micros), microseconds(s.MaxMicros),
		fmt.Sprintf("%.2f", s.OfVerified)))
	fmt.Fprintln(w)
	if why := v.reasons(); why != "" {
		fmt.Fprintf(w, "refused: %s\n", why)
	}
	if r.verdict() == nil {
		fmt.Fprintln(w, "every use is counted once; the ledger has no new gap")
	}
}

// verdict implements benchReport.
func (r *ingestReport) verdict() error {
	var errs []error
	switch {
	case r.Missing > 0:
		errs = append(errs, fmt.Errorf("%d uses are not in the record, and for %s no more came", r.Missing, benchPatience))
	case r.Missing < 0:
		errs = append(errs, fmt.Errorf("the record has %d uses more than were answered", -r.Missing))
	}
	if r.Differing > 0 {
		errs = append(errs, fmt.Errorf("the record has %d uses with another outcome than was answered", r.Differing))
	}
	if r.Gaps > 0 {
		errs = append(errs, fmt.Errorf("the ledger has %d new gaps, which may be of any tenant; 'keytrail audit usage' says how many uses are lost", r.Gaps))
	}
	return errors.Join(errs...)
}
