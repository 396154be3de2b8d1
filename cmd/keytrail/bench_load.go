package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/time/rate"

	"github.com/keytrail/keytrail/events"
)

// load asks questions from several clients at once, each the next one when the last is
// answered.
type load struct {
	http    *http.Client
	clients int
	length  time.Duration
	pace    *rate.Limiter // of requests, all clients together; nil = as fast as they are answered

	// ask returns what client i asks as its n-th question, see takes the answer and when,
	// since the start, it was asked for and had come. Each is called by one goroutine a
	// client.
	ask func(client, n int) (target string, body []byte)
	see func(client int, sent, got time.Duration, answer []byte) error
}

// benchGrace is how long the last answers of a load are waited for.
const benchGrace = 30 * time.Second

// run returns how long it took, the last answers included. When the time is over, or
// ctx ends, no more is asked and what is under way is waited for, so that every use is
// counted. Each client asks at least once. Errors: the first of a client, which ends all.
func (l *load) run(ctx context.Context) (time.Duration, error) {
	ctx, stop := context.WithTimeout(ctx, l.length)
	defer stop()
	answering, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { // ends with answering
		pauseFor(answering, benchGrace)
		cancel()
	})()
	errs := make([]error, l.clients)
	began := time.Now()
	var clients sync.WaitGroup
	for i := range l.clients {
		clients.Go(func() {
			if errs[i] = l.client(ctx, answering, began, i); errs[i] != nil {
				stop()
			}
		})
	}
	clients.Wait()
	return time.Since(began), cmp.Or(errs...)
}

func (l *load) client(ctx, answering context.Context, began time.Time, i int) error {
	waiting := answering // the first question is asked in any case
	for n := 0; n == 0 || ctx.Err() == nil; n++ {
		if l.pace != nil && l.pace.Wait(waiting) != nil {
			return nil // its turn comes after the end
		}
		waiting = ctx
		target, ask := l.ask(i, n)
		sent := time.Since(began)
		answer, err := post(answering, l.http, target, ask)
		if err != nil {
			return err
		}
		if err := l.see(i, sent, time.Since(began), answer); err != nil {
			return fmt.Errorf("%s: %w", host(target), err)
		}
	}
	return nil
}

// maxBenchAnswer bounds what is read of one answer of a verifier, in bytes.
const maxBenchAnswer = 1 << 20

// post sends one question and returns the answer.
func post(ctx context.Context, hc *http.Client, target string, ask []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(ask))
	if err != nil {
		return nil, errors.New("--verifier (KEYTRAIL_VERIFY_URL): want a URL as http://127.0.0.1:7071")
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := hc.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s did not answer in time", host(target))
		}
		return nil, fmt.Errorf("%s did not answer: %w", host(target), errors.Unwrap(err)) // url.Error repeats the address
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxBenchAnswer))
	if err != nil {
		return nil, fmt.Errorf("the answer of %s broke off: %w", host(target), err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %s", host(target), line(resp.Status))
	}
	return answer, nil
}

// tally counts decisions. It is what a report shows of them.
type tally struct {
	Allowed int  `json:"allowed"`
	Refused int  `json:"refused"`
	Reasons uses `json:"refused_by,omitempty"`

	numbered uses // those with a number in the ledger
}

// uses counts the uses of a tenant by their reason.
type uses map[string]int

func (u uses) total() (n int) {
	for _, of := range u {
		n += of
	}
	return n
}

// add adds o and returns the sum. u may be nil.
func (u uses) add(o uses) uses {
	if u == nil && len(o) > 0 {
		u = uses{}
	}
	for reason, n := range o {
		u[reason] += n
	}
	return u
}

var allowedMember, numberMember = []byte(`"allowed":true`), []byte(`"use_id":"`)

var allowedReason = events.ReasonOK.String()

// decided is what a tally reads of a decision.
type decided struct {
	Allowed bool   `json:"allowed"`
	Reason  string `json:"reason"`
	Tenant  string `json:"tenant"`
	Use     string `json:"use_id"`
}

// count adds the decisions of an answer to per questions and returns how many of them
// are allowed. The answer that is expected, all allowed, is not parsed: the client works
// on the same cores as what is measured.
func (t *tally) count(answer []byte, per int) (allowed int, err error) {
	if bytes.Count(answer, allowedMember) == per && bytes.Count(answer, numberMember) == per {
		t.Allowed += per
		if t.numbered == nil {
			t.numbered = uses{}
		}
		t.numbered[allowedReason] += per
		return per, nil
	}
	list, err := decisionsOf(answer, per)
	if err != nil {
		return 0, err
	}
	for i := range list {
		d := &list[i]
		one := uses{d.Reason: 1}
		if d.Use != "" && d.Tenant != "" {
			t.numbered = t.numbered.add(one)
		}
		if d.Allowed {
			allowed++
			continue
		}
		t.Refused++
		t.Reasons = t.Reasons.add(one)
	}
	t.Allowed += allowed
	return allowed, nil
}

// decisionsOf reads the answer to per questions.
func decisionsOf(answer []byte, per int) ([]decided, error) {
	var v struct {
		decided
		Data []decided `json:"data"`
	}
	if err := json.Unmarshal(answer, &v); err != nil {
		return nil, fmt.Errorf("the answer is no decision: %w", err)
	}
	list := v.Data
	if list == nil {
		list = []decided{v.decided}
	}
	if len(list) != per {
		return nil, fmt.Errorf("the answer has %d decisions for %d questions", len(list), per)
	}
	for i := range list {
		if _, err := events.ParseReason(list[i].Reason); err != nil || list[i].Allowed != (list[i].Reason == allowedReason) {
			return nil, fmt.Errorf("the answer is no decision, or of a release that this command does not know")
		}
	}
	return list, nil
}

func (t *tally) add(o *tally) {
	t.Allowed += o.Allowed
	t.Refused += o.Refused
	t.Reasons = t.Reasons.add(o.Reasons)
	t.numbered = t.numbered.add(o.numbered)
}

// reasons says what was refused and why, "" when nothing was.
func (t *tally) reasons() string {
	var out []string
	for _, r := range slices.Sorted(maps.Keys(t.Reasons)) {
		out = append(out, fmt.Sprintf("%d %s", t.Reasons[r], line(r)))
	}
	return strings.Join(out, ", ")
}

// quantile returns the time that the share q of the times do not exceed; 0 of none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// spread is the least, the middle and the greatest of some figures.
type spread struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

func spreadOf(figures []float64) spread {
	s := slices.Sorted(slices.Values(figures))
	return spread{s[0], s[len(s)/2], s[len(s)-1]}
}
