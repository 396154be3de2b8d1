package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/verifier"
)

func (a *app) benchVerify() *cobra.Command {
	f := benchFlags{clients: 8, length: 10 * time.Second}
	var keys, rounds int
	c := &cobra.Command{Use: "verify", Short: "Measure verifications a second beside a bare handler",
		Long: `Ask verifiers about keys, one in a request and 100 in a request, from a few clients. In
turn the same clients send the same questions to a bare handler of net/http, a process
of its own on this machine that reads them and writes the bytes of such an answer. OF
BARE is how many of its requests a second a verifier answers: the median of the rounds.

Only requests that are allowed whole are measured: a refusal is answered sooner. Every
verification is a use on the record, tens of thousands of them.`,
		Example: "  keytrail bench verify --time 10s\n  keytrail bench verify --verifier http://127.0.0.1:7071 --verifier http://127.0.0.1:7072 --clients 16 --json",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := errors.Join(between("keys", keys, 1, maxBenchKeys), between("rounds", rounds, 1, 100)); err != nil {
				return usageError{err}
			}
			return a.bench(c, &f, func(ctx context.Context, b *bench) (benchReport, error) { return b.verify(ctx, keys, rounds) })
		}}
	c.Flags().IntVar(&keys, "keys", 100, fmt.Sprintf("how many keys are asked about in turn, at most %d", maxBenchKeys))
	c.Flags().IntVar(&rounds, "rounds", 5, "how often each is measured, at most 100")
	f.register(c, "connections at once")
	return c
}

// contender is what is measured in each round.
type contender struct {
	base, path string
	bodies     [][]byte
	bare       *contender // whose figures this one is held to; nil = it is one

	// Of each round: requests a second that were allowed whole. Of all: how long each of
	// those took, and the decisions.
	rates []float64
	times []time.Duration
	per   int // decisions in a request
	tally tally
}

// verifyReport is what `bench verify` has measured.
type verifyReport struct {
	Clients int            `json:"clients"`
	Keys    int            `json:"keys"`
	Rounds  int            `json:"rounds"`
	RoundMS float64        `json:"round_ms"` // of one of them, in one round
	Rows    []verifyRow    `json:"rows"`
	Batch   []batchAgainst `json:"batch"`
}

// verifyRow is one way of asking. Its times are those of requests.
type verifyRow struct {
	What              string `json:"what"` // bare or verify
	Address           string `json:"address,omitzero"`
	KeysPerRequest    int    `json:"keys_per_request"`
	RequestsPerSecond spread `json:"requests_per_second"`
	P50Micros         int64  `json:"p50_us"`
	P99Micros         int64  `json:"p99_us"`
	tally
	OfBare *spread `json:"of_bare,omitzero"` // of its requests a second, by round
}

// batchAgainst compares the keys a second of batches and of single questions.
type batchAgainst struct {
	Address string  `json:"address"`
	Ratio   float64 `json:"keys_per_second_of_single"`
}

func (b *bench) verify(ctx context.Context, n, rounds int) (benchReport, error) {
	keys, _, err := b.keys(ctx, n)
	if err != nil {
		return nil, err
	}
	single, batch := questions(keys)
	bare, err := startBare(ctx, b, single[0], batch[0])
	if err != nil {
		return nil, err
	}
	defer bare.Close()
	bareSingle := &contender{base: bare.base, path: "/v1/verify", bodies: single, per: 1}
	bareBatch := &contender{base: bare.base, path: "/v1/verify/batch", bodies: batch, per: verifier.MaxBatch}
	list := []*contender{bareSingle, bareBatch}
	for _, v := range b.verifiers {
		list = append(list, &contender{base: v, path: bareSingle.path, bodies: single, per: bareSingle.per, bare: bareSingle},
			&contender{base: v, path: bareBatch.path, bodies: batch, per: bareBatch.per, bare: bareBatch})
	}
	each := max(b.length/time.Duration(rounds*len(list)), time.Millisecond)
	began := time.Now()
	defer b.app.progress("measuring", int64(b.length), func() int64 { return int64(time.Since(began)) })()
	for round := range rounds {
		for i := range list { // each is first in some round
			if ctx.Err() != nil {
				return nil, errInterrupted
			}
			if err := list[(round+i)%len(list)].measure(ctx, b, each); err != nil {
				return nil, err
			}
		}
	}
	r := &verifyReport{Clients: b.clients, Keys: n, Rounds: rounds, RoundMS: float64(each) / float64(time.Millisecond)}
	for _, c := range list {
		row, err := c.row()
		if err != nil {
			return nil, err
		}
		r.Rows = append(r.Rows, row)
	}
	for i := 2; i < len(list); i += 2 {
		if single := spreadOf(list[i].rates).Median; single > 0 { // 0: refused in most rounds
			of := spreadOf(list[i+1].rates).Median * verifier.MaxBatch / single
			r.Batch = append(r.Batch, batchAgainst{host(list[i].base), of})
		}
	}
	return r, nil
}

// questions returns the bodies of single requests about each key, and of batches.
func questions(keys []benchKey) (single, batch [][]byte) {
	for i := range keys {
		single = append(single, body(questionAbout(&keys[i], "")))
	}
	for i := range min(len(keys), 10) {
		list := make([]any, verifier.MaxBatch)
		for j := range list {
			list[j] = questionAbout(&keys[(i+j)%len(keys)], "")
		}
		batch = append(batch, body(map[string]any{"requests": list}))
	}
	return single, batch
}

// measure loads the contender for a round.
func (c *contender) measure(ctx context.Context, b *bench, d time.Duration) error {
	times, tallies := make([][]time.Duration, b.clients), make([]tally, b.clients)
	l := &load{http: b.load, clients: b.clients, length: d,
		ask: func(client, n int) (string, []byte) { return c.base + c.path, c.bodies[(client+n)%len(c.bodies)] },
		see: func(client int, sent, got time.Duration, answer []byte) error {
			allowed, err := tallies[client].count(answer, c.per)
			if allowed == c.per {
				times[client] = append(times[client], got-sent)
			}
			return err
		}}
	took, err := l.run(ctx)
	if err != nil {
		return err
	}
	measured := slices.Concat(times...)
	c.times = append(c.times, measured...)
	c.rates = append(c.rates, float64(len(measured))/took.Seconds())
	for i := range tallies {
		c.tally.add(&tallies[i])
	}
	return nil
}

func (c *contender) row() (verifyRow, error) {
	if len(c.times) == 0 {
		return verifyRow{}, fmt.Errorf("%s allowed no request (%s): nothing was measured", host(c.base), c.tally.reasons())
	}
	slices.Sort(c.times)
	r := verifyRow{What: "bare", KeysPerRequest: c.per, RequestsPerSecond: spreadOf(c.rates), tally: c.tally,
		P50Micros: quantile(c.times, .5).Microseconds(), P99Micros: quantile(c.times, .99).Microseconds()}
	if c.bare == nil {
		return r, nil
	}
	ratios := make([]float64, len(c.rates))
	for i := range ratios {
		ratios[i] = c.rates[i] / c.bare.rates[i]
	}
	of := spreadOf(ratios)
	r.What, r.Address, r.OfBare = "verify", host(c.base), &of
	return r, nil
}

func (r *verifyReport) print(w *tabwriter.Writer) {
	heading(w, fmt.Sprintf("requests a second of %d clients about %d keys, in %d rounds of %.0f ms each", r.Clients, r.Keys, r.Rounds, r.RoundMS),
		"", "MIN", "MEDIAN", "MAX", "P50", "P99", "ALLOWED", "REFUSED", "OF BARE")
	for i := range r.Rows {
		row := &r.Rows[i]
		name, of := "bare handler", ""
		if row.OfBare != nil {
			name, of = row.Address, fmt.Sprintf("%.2f", row.OfBare.Median)
		}
		if row.KeysPerRequest > 1 {
			name += fmt.Sprintf(", batches of %d", row.KeysPerRequest)
		}
		s := row.RequestsPerSecond
		fmt.Fprintln(w, cells(name, perSecond(s.Min), perSecond(s.Median), perSecond(s.Max), microseconds(row.P50Micros), microseconds(row.P99Micros),
			fmt.Sprint(row.Allowed), fmt.Sprint(row.Refused), of))
	}
	fmt.Fprintln(w)
	for _, b := range r.Batch {
		fmt.Fprintf(w, "%s verifies %.1f times as many keys a second in batches\n", b.Address, b.Ratio)
	}
	for i := range r.Rows {
		if why := r.Rows[i].reasons(); why != "" {
			fmt.Fprintf(w, "refused by %s, and not measured: %s\n", r.Rows[i].Address, why)
		}
	}
}

// verdict implements benchReport: no figure is wrong by itself.
func (r *verifyReport) verdict() error { return nil }

// bareServer is a process of its own, as a verifier is, whose handler of net/http does
// nothing but read and write.
type bareServer struct {
	base string
	cmd  *exec.Cmd
	in   io.Closer // its end is the end of the process, also when this one is killed
}

// sample returns an answer of the first verifier that allows all that is asked.
func (b *bench) sample(ctx context.Context, path string, ask []byte) ([]byte, error) {
	for until := time.Now().Add(benchPatience); ; pauseFor(ctx, benchPause) {
		answer, err := b.post(ctx, b.verifiers[0]+path, ask)
		if err != nil || !bytes.Contains(answer, []byte(`"allowed":false`)) {
			return answer, err
		}
		if ctx.Err() != nil || time.Now().After(until) {
			return nil, fmt.Errorf("%s denies keys that it has allowed: nothing was measured", host(b.verifiers[0]))
		}
	}
}

// startBare serves the bytes of an answer of the first verifier to a single question and
// to a batch.
func startBare(ctx context.Context, b *bench, single, batch []byte) (*bareServer, error) {
	answers := map[string][]byte{"/v1/verify": single, "/v1/verify/batch": batch}
	for path, ask := range answers {
		var err error
		if answers[path], err = b.sample(ctx, path, ask); err != nil {
			return nil, err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("the bare handler: %w", err)
	}
	s := &bareServer{cmd: exec.Command(self, "bench", bareHandler)}
	in, err := s.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("the bare handler: %w", err)
	}
	s.in = in
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("the bare handler: %w", err)
	}
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("the bare handler: %w", err)
	}
	err = json.MarshalWrite(in, answers)
	if err == nil {
		_, err = io.WriteString(in, "\n")
	}
	if err == nil {
		_, err = fmt.Fscanln(out, &s.base)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("the bare handler did not start: %w", err)
	}
	return s, nil
}

// Close ends the process.
func (s *bareServer) Close() {
	s.in.Close()
	s.cmd.Wait()
}

const bareHandler = "bare-handler"

// benchBareHandler is the process of a bareServer. It reads what to answer, as a line of
// JSON, writes its address, and ends with its input.
func (a *app) benchBareHandler() *cobra.Command {
	return &cobra.Command{Use: bareHandler, Hidden: true, Short: "Serve given answers, for bench verify", Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			in := bufio.NewReader(a.in)
			told, err := in.ReadBytes('\n')
			if err != nil {
				return fmt.Errorf("read the answers: %w", err)
			}
			var answers map[string][]byte
			if err := json.Unmarshal(told, &answers); err != nil {
				return fmt.Errorf("read the answers: %w", err)
			}
			mux := http.NewServeMux()
			for path, answer := range answers {
				mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
					if _, err := io.Copy(io.Discard, r.Body); err != nil {
						w.WriteHeader(http.StatusBadRequest)
						return
					}
					w.Header()["Content-Type"] = []string{"application/json"}
					w.Header()["Cache-Control"] = []string{"no-store"}
					w.Write(answer)
				})
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return err
			}
			srv := &http.Server{Handler: mux, ReadHeaderTimeout: benchPatience}
			defer srv.Close()
			go srv.Serve(l) // ends with Close
			fmt.Fprintf(a.out, "http://%s\n", l.Addr())
			ended := make(chan struct{})
			go func() { // ends with the input, or with the process
				defer close(ended)
				io.Copy(io.Discard, in)
			}()
			select {
			case <-ended:
			case <-c.Context().Done():
			}
			return nil
		}}
}
