package verifier

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keytrail/keytrail/internal/api"
)

// BenchmarkEndpoints asks each endpoint beside a bare net/http handler that reads the same
// bytes and writes the same answer, over one connection that is kept alive, with a client
// that costs next to nothing. The two take turns in short blocks, and their medians are
// compared, which a busy machine cannot spoil for one of them. batch is a hundred questions
// in one request; per-key is what one of them costs of a request with one.
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

	next := 0
	secret := func() string { next++; return w.secrets[next*7919%benchKeys] }
	question := func() string {
		return `{"key":"` + secret() + `","keyspace":"scribe-sight","scope":"read","resource":{"kind":"project","id":"proj_1"},"ip":"203.0.113.7"}`
	}
	post := func(path, body string) []byte {
		return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: k\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
	}
	median := map[string]float64{}
	for _, c := range []struct {
		name string
		ask  func() []byte
		want string
	}{
		{"verify", func() []byte { return post("/v1/verify", question()) }, `{"allowed":true`},
		{"batch", func() []byte {
			all := make([]string, MaxBatch)
			for i := range all {
				all[i] = question()
			}
			return post("/v1/verify/batch", `{"requests":[`+strings.Join(all, ",")+`]}`)
		}, `{"data":[{"allowed":true`},
		// As nginx asks, with the client's headers.
		{"forward-auth", func() []byte {
			return []byte("GET /v1/authorize/scribe-sight?refusal=header&scope=read&resource=project/proj_1 HTTP/1.1\r\nHost: api.example.com\r\nX-Forwarded-For: 203.0.113.7\r\n" +
				"X-Forwarded-Proto: https\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\nAuthorization: Bearer " + secret() + "\r\n\r\n")
		}, ""},
	} {
		b.Run(c.name, func(b *testing.B) {
			first := dialRaw(b, real.URL)
			answer, body := first.ask(c.ask())
			if answer.StatusCode != 200 || !bytes.HasPrefix(body, []byte(c.want)) {
				b.Fatalf("%d %s", answer.StatusCode, body)
			}
			header := answer.Header.Clone()
			header.Del("Date") // net/http writes it
			header.Del("Content-Length")
			bare := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, err := io.ReadAll(r.Body); err != nil {
					w.WriteHeader(400)
					return
				}
				maps.Copy(w.Header(), header)
				w.Write(body)
			}))
			defer bare.Close()
			const block = 32
			conns := []*rawConn{dialRaw(b, bare.URL), first}
			times := make([][]float64, 2)
			asks := make([][]byte, block)
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N || len(times[1]) < 9; i += block {
				for n, conn := range conns {
					for j := range asks {
						asks[j] = c.ask()
					}
					began := time.Now()
					for _, ask := range asks {
						if r, _ := conn.ask(ask); r.StatusCode != 200 {
							b.Fatal(r.Status)
						}
					}
					times[n] = append(times[n], float64(time.Since(began).Nanoseconds())/block)
				}
			}
			for n := range times {
				slices.Sort(times[n])
			}
			m := times[1][len(times[1])/2]
			median[c.name] = m
			b.ReportMetric(times[0][len(times[0])/2], "bare-ns")
			b.ReportMetric(m/times[0][len(times[0])/2], "real/bare")
			if c.name == "batch" && median["verify"] > 0 {
				b.ReportMetric(m/MaxBatch/median["verify"], "per-key/verify")
			}
		})
	}
	if err := stop(); err != nil {
		b.Fatal(err)
	}
}

// rawConn is a client that writes bytes and reads one answer.
type rawConn struct {
	b testing.TB
	c net.Conn
	r *bufio.Reader
}

func dialRaw(b testing.TB, url string) *rawConn {
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return &rawConn{b, c, bufio.NewReaderSize(c, 64<<10)}
}

func (c *rawConn) ask(request []byte) (*http.Response, []byte) {
	if _, err := c.c.Write(request); err != nil {
		c.b.Fatal(err)
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.b.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.b.Fatal(err)
	}
	return resp, body
}
