package main

import (
	"bytes"
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

	"github.com/keytrail/keytrail/events"
)

// A bench of revocations ends after so many. Each leaves two events in the lifecycle log,
// which keeps them for ever.
const maxRevocations = 1000

func (a *app) benchRevoke() *cobra.Command {
	f := benchFlags{clients: 1, length: 10 * time.Second}
	c := &cobra.Command{Use: "revoke", Short: "Measure how soon a revoked key is refused, and its receipt complete",
		Long: fmt.Sprintf(`Revoke keys, and measure from each acknowledgement how long it takes until every given
verifier has refused the key, or until the receipt of the revocation is complete: one key
in two for either, since asking the verifiers costs time. OF A QUESTION is how many
times a question to a verifier takes, which is the least that anybody can notice; it is
measured before each revocation.

Each revocation leaves two events in the lifecycle log: after %d of them it ends.`, maxRevocations),
		Example: "  keytrail bench revoke --time 10s\n  keytrail bench revoke --verifier http://127.0.0.1:7071 --verifier http://127.0.0.1:7072 --json",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.bench(c, &f, func(ctx context.Context, b *bench) (benchReport, error) { return b.revoke(ctx) })
		}}
	f.register(c, "keys on their way at once")
	return c
}

// revocationReport is what `bench revoke` has measured.
type revocationReport struct {
	Clients     int             `json:"clients"`
	Revocations int             `json:"revocations"`
	Rows        []revocationRow `json:"rows"`

	// What a verifier allowed after the receipt had said that none does. It must be 0.
	AllowedAfterReceipt int `json:"allowed_after_receipt"`
}

// revocationRow is how long one thing takes, from the acknowledgement of the revocation;
// question and acknowledged from when they were asked for.
type revocationRow struct {
	What       string  `json:"what"` // question, acknowledged, refused, refused by all, receipt
	Address    string  `json:"address,omitzero"`
	Count      int     `json:"count"`
	P50Micros  int64   `json:"p50_us"`
	P99Micros  int64   `json:"p99_us"`
	MaxMicros  int64   `json:"max_us"`
	OfQuestion float64 `json:"p50_of_question"`
	Answers    *tally  `json:"answers,omitzero"` // to questions
}

// revocationTimes is what was measured so far.
type revocationTimes struct {
	mu sync.Mutex // guards all
	// by verifier
	refused [][]time.Duration
	answers []tally // after the acknowledgement, up to the first refusal

	question, acknowledged, all, receipt []time.Duration

	before tally // answers before the revocation; those that allow are measured
	late   int   // allowed after the receipt
}

func (b *bench) revoke(ctx context.Context) (benchReport, error) {
	times := &revocationTimes{refused: make([][]time.Duration, len(b.verifiers)), answers: make([]tally, len(b.verifiers))}
	var begun atomic.Int64
	began := time.Now()
	endProgress := b.app.progress("revoking", int64(b.length), func() int64 { return int64(time.Since(began)) })
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	errs := make([]error, b.clients)
	var clients sync.WaitGroup
	for i := range b.clients {
		clients.Go(func() {
			for ctx.Err() == nil {
				// Two each at least: one for either measure.
				n := begun.Add(1)
				if n > maxRevocations || n > 2*int64(b.clients) && time.Since(began) > b.length {
					return
				}
				if errs[i] = b.revokeOne(ctx, times, n%2 == 0); errs[i] != nil {
					stop()
				}
			}
		})
	}
	clients.Wait()
	endProgress()
	for _, err := range errs { // what another client's failure has interrupted comes last
		if err != nil && !errors.Is(err, errInterrupted) {
			return nil, err
		}
	}
	if err := errors.Join(errs...); err != nil || ctx.Err() != nil {
		return nil, errInterrupted
	}
	return times.report(b), nil
}

// revokeOne takes one key through its life: made, allowed everywhere, revoked, and
// refused everywhere or on its receipt.
func (b *bench) revokeOne(ctx context.Context, times *revocationTimes, byReceipt bool) error {
	key, err := b.key(ctx, nil)
	if err != nil {
		return err
	}
	ask := body(questionAbout(&key, ""))
	var question []time.Duration
	var before tally
	for _, v := range b.verifiers {
		if _, err := b.allowed(ctx, v, &key); err != nil {
			return err
		}
		began := time.Now()
		answer, err := b.post(ctx, v+"/v1/verify", ask)
		if err != nil {
			return err
		}
		took := time.Since(began)
		allowed, err := before.count(answer, 1)
		if err != nil {
			return fmt.Errorf("%s: %w", host(v), err)
		}
		if allowed == 1 {
			question = append(question, took)
		}
	}
	path := "/v1/keys/" + key.ID
	began := time.Now()
	if err := b.call(ctx, http.MethodDelete, path, nil, nil, nil, nil); err != nil {
		return err
	}
	acknowledged := time.Now()
	times.mu.Lock()
	times.question = append(times.question, question...)
	times.before.add(&before)
	times.acknowledged = append(times.acknowledged, acknowledged.Sub(began))
	times.mu.Unlock()
	if byReceipt {
		return b.untilReceipt(ctx, times, path, ask, acknowledged)
	}
	return b.untilRefused(ctx, times, ask, acknowledged)
}

// untilRefused asks all verifiers at once until each has refused the key.
func (b *bench) untilRefused(ctx context.Context, times *revocationTimes, ask []byte, acknowledged time.Time) error {
	took, answers, errs := make([]time.Duration, len(b.verifiers)), make([]tally, len(b.verifiers)), make([]error, len(b.verifiers))
	var asking sync.WaitGroup
	for i, v := range b.verifiers {
		asking.Go(func() { took[i], answers[i], errs[i] = b.untilRefusedBy(ctx, v, ask, acknowledged) })
	}
	asking.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	times.mu.Lock()
	defer times.mu.Unlock()
	for i := range took {
		times.refused[i] = append(times.refused[i], took[i])
		times.answers[i].add(&answers[i])
	}
	times.all = append(times.all, slices.Max(took))
	return nil
}

func (b *bench) untilRefusedBy(ctx context.Context, verifier string, ask []byte, acknowledged time.Time) (took time.Duration, t tally, err error) {
	for t.Reasons[events.ReasonKeyRevoked.String()] == 0 {
		if took > benchPatience {
			return 0, t, fmt.Errorf("%s does not refuse a key that was revoked %s ago", host(verifier), took.Round(time.Second))
		}
		if ctx.Err() != nil {
			return 0, t, errInterrupted
		}
		answer, err := b.post(ctx, verifier+"/v1/verify", ask)
		if err != nil {
			return 0, t, err
		}
		took = time.Since(acknowledged)
		if _, err := t.count(answer, 1); err != nil {
			return 0, t, fmt.Errorf("%s: %w", host(verifier), err)
		}
	}
	return took, t, nil
}

// untilReceipt waits for the receipt, after which no verifier may allow the key.
func (b *bench) untilReceipt(ctx context.Context, times *revocationTimes, path string, ask []byte, acknowledged time.Time) error {
	for wait := (url.Values{"wait": {"applied"}, "wait_timeout": {"5s"}}); ; {
		var r struct {
			Data receiptView `json:"data"`
		}
		if err := b.call(ctx, http.MethodGet, path+"/receipt", wait, nil, nil, &r); err != nil {
			return err
		}
		took := time.Since(acknowledged)
		if r.Data.Complete {
			times.mu.Lock()
			times.receipt = append(times.receipt, took)
			times.mu.Unlock()
			break
		}
		if took > 2*benchPatience {
			return fmt.Errorf("the receipt of a revocation is not complete after %s: GET %s/receipt tells why", took.Round(time.Second), path)
		}
		if ctx.Err() != nil {
			return errInterrupted
		}
	}
	for _, v := range b.verifiers {
		answer, err := b.post(ctx, v+"/v1/verify", ask)
		if err != nil {
			return err
		}
		if bytes.Contains(answer, allowedMember) {
			times.mu.Lock()
			times.late++
			times.mu.Unlock()
		}
	}
	return nil
}

func (t *revocationTimes) report(b *bench) *revocationReport {
	r := &revocationReport{Clients: b.clients, Revocations: len(t.acknowledged), AllowedAfterReceipt: t.late}
	slices.Sort(t.question)
	question := quantile(t.question, .5)
	add := func(what, address string, times []time.Duration, answers *tally) {
		slices.Sort(times)
		r.Rows = append(r.Rows, revocationRow{What: what, Address: address, Count: len(times), P50Micros: quantile(times, .5).Microseconds(),
			P99Micros: quantile(times, .99).Microseconds(), MaxMicros: quantile(times, 1).Microseconds(),
			OfQuestion: float64(quantile(times, .5)) / float64(max(question, 1)), Answers: answers})
	}
	add("question", "", t.question, &t.before)
	add("acknowledged", "", t.acknowledged, nil)
	for i, v := range b.verifiers {
		add("refused", host(v), t.refused[i], &t.answers[i])
	}
	add("refused by all", "", t.all, nil)
	add("receipt", "", t.receipt, nil)
	return r
}

func (r *revocationReport) print(w *tabwriter.Writer) {
	heading(w, fmt.Sprintf("%d revocations, %d on their way at once; times from the acknowledgement", r.Revocations, r.Clients),
		"", "COUNT", "P50", "P99", "MAX", "ALLOWED", "REFUSED", "OF A QUESTION")
	for i := range r.Rows {
		row := &r.Rows[i]
		name := row.What
		switch name {
		case "question":
			name = "a question, before"
		case "acknowledged":
			name = "the acknowledgement"
		case "refused":
			name = "refused by " + row.Address
		case "receipt":
			name = "the receipt is complete"
		}
		allowed, refused := "", ""
		if row.Answers != nil {
			allowed, refused = fmt.Sprint(row.Answers.Allowed), fmt.Sprint(row.Answers.Refused)
		}
		fmt.Fprintln(w, cells(name, fmt.Sprint(row.Count), microseconds(row.P50Micros), microseconds(row.P99Micros), microseconds(row.MaxMicros),
			allowed, refused, fmt.Sprintf("%.1f", row.OfQuestion)))
	}
	fmt.Fprintf(w, "\nallowed after a complete receipt: %d\n", r.AllowedAfterReceipt)
}

// verdict implements benchReport.
func (r *revocationReport) verdict() error {
	if r.AllowedAfterReceipt > 0 {
		return fmt.Errorf("%d answers allowed a key after its receipt had said that no verifier does", r.AllowedAfterReceipt)
	}
	return nil
}
