package verifier

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/internal/loadtest"
)

// BenchmarkEndpoints asks each endpoint beside a bare net/http handler that reads the same
// bytes and writes the same answer, over connections that are kept alive. The clients are
// a process of their own (loadtest). The two handlers take turns.
//
//	cpu     what the bare handler costs this process, and how many times as much the endpoint
//	rate    requests a second beside those of the bare handler, with the clients on the same machine: the median of the turns
//	single  of a batch: what a question costs beside a request of its own, in CPU and in time
func BenchmarkEndpoints(b *testing.B) {
	w := million()
	l := NewLedger(w.ledger.cfg)
	node := NewNode(NodeConfig{View: w.view, Ledger: l, Leases: nowhere{}, Log: w.node.cfg.Log, Logger: slog.New(slog.DiscardHandler),
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
	leased(b, node)
	stop := run(b, l)
	waitFor(b, func() bool { return l.Ready() == nil })
	mux := http.NewServeMux()
	node.Routes(mux)
	real := httptest.NewServer(api.Handler(mux))
	defer real.Close()
	clients := loadtest.Start(b)

	next := 0
	secret := func() string { next++; return w.secrets[next*7919%benchKeys] }
	question := func() string {
		return `{"key":"` + secret() + `","keyspace":"scribe-sight","scope":"read","resource":{"kind":"project","id":"proj_1"},"ip":"203.0.113.7"}`
	}
	post := func(path, body string) []byte {
		return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: k\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
	}
	var single loadtest.Cost // of a request to /v1/verify
	for _, c := range []struct {
		name  string
		block int // requests in a turn
		ask   func() []byte
		want  string
	}{
		{"verify", 2000, func() []byte { return post("/v1/verify", question()) }, `{"allowed":true`},
		{"batch", 200, func() []byte {
			all := make([]string, MaxBatch)
			for i := range all {
				all[i] = question()
			}
			return post("/v1/verify/batch", `{"requests":[`+strings.Join(all, ",")+`]}`)
		}, `{"data":[{"allowed":true`},
		// As nginx asks, with the client's headers.
		{"forward-auth", 2000, func() []byte {
			return []byte("GET /v1/authorize/scribe-sight?refusal=header&scope=read&resource=project/proj_1 HTTP/1.1\r\nHost: api.example.com\r\nX-Forwarded-For: 203.0.113.7\r\n" +
				"X-Forwarded-Proto: https\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\nAuthorization: Bearer " + secret() + "\r\n\r\n")
		}, ""},
	} {
		b.Run(c.name, func(b *testing.B) {
			header, body := answerOf(b, real.URL, c.ask())
			if !bytes.HasPrefix(body, []byte(c.want)) {
				b.Fatalf("%s", body)
			}
			bare := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, err := io.ReadAll(r.Body); err != nil {
					w.WriteHeader(400)
					return
				}
				maps.Copy(w.Header(), header)
				w.Write(body)
			}))
			defer bare.Close()
			servers := []string{bare.Listener.Addr().String(), real.Listener.Addr().String()}
			sums, rates := make([]loadtest.Cost, len(servers)), []float64(nil)
			sent := 0
			b.ResetTimer()
			for sent < b.N || len(rates) < 5 {
				sent += c.block
				var turn [2]loadtest.Cost
				for i := range servers {
					n := (i + len(rates)) % len(servers) // each is first in every second turn
					asks := make([][]byte, c.block)
					for j := range asks {
						asks[j] = c.ask()
					}
					turn[n] = clients.Run(b, &loadtest.Load{Address: servers[n], Conns: 4, Messages: asks})
					sums[n].CPU += turn[n].CPU
					sums[n].Wall += turn[n].Wall
				}
				rates = append(rates, turn[0].Wall.Seconds()/turn[1].Wall.Seconds())
			}
			slices.Sort(rates)
			each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / float64(sent) }
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(each(sums[0].CPU), "bare-cpu-ns")
			b.ReportMetric(sums[1].CPU.Seconds()/sums[0].CPU.Seconds(), "cpu/bare")
			b.ReportMetric(rates[len(rates)/2], "rate/bare")
			switch per := (loadtest.Cost{CPU: sums[1].CPU / time.Duration(sent), Wall: sums[1].Wall / time.Duration(sent)}); {
			case c.name == "verify":
				single = per
			case c.name == "batch" && single.CPU > 0:
				b.ReportMetric(per.CPU.Seconds()/MaxBatch/single.CPU.Seconds(), "key-cpu/single")
				b.ReportMetric(per.Wall.Seconds()/MaxBatch/single.Wall.Seconds(), "key-time/single")
			}
		})
	}
	if err := stop(); err != nil {
		b.Fatal(err)
	}
}

// answerOf asks once and returns what a handler wrote: net/http adds the other headers.
func answerOf(b *testing.B, url string, request []byte) (http.Header, []byte) {
	c, err := loadtest.Dial(strings.TrimPrefix(url, "http://"))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	answer, body, err := c.Ask(request)
	if err != nil || answer.StatusCode != 200 {
		b.Fatalf("%v %v %s", err, answer, body)
	}
	answer.Header.Del("Date")
	answer.Header.Del("Content-Length")
	return answer.Header, body
}
