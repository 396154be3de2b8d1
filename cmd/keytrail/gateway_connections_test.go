package main

import (
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// countedHop passes connections on to an address and counts them.
type countedHop struct {
	net.Listener
	opened atomic.Int64
}

func newCountedHop(t *testing.T, to string) *countedHop {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &countedHop{Listener: l}
	var serving sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			h.opened.Add(1)
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			mu.Lock()
			open = append(open, in, out)
			mu.Unlock()
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				serving.Go(func() {
					io.Copy(pair[0], pair[1])
					pair[0].Close()
					pair[1].Close()
				})
			}
		}
	})
	return h
}

// TestGatewayConnections: a gateway opens no connection for a request, neither to the
// verifier nor to the API; not for a client that comes with a connection of its own either.
func TestGatewayConnections(t *testing.T) {
	t.Parallel()
	for _, k := range gatewayKinds {
		t.Run(k.name, func(t *testing.T) {
			k.installed(t)
			p := up(t, filepath.Join(t.TempDir(), "data"), "--trusted-proxy", "127.0.0.1/32")
			p.must(t, "keyspace", "apply", "-f", regime)
			key := p.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "ci"})
			p.wantReason(t, "ok", map[string]any{"key": key["key"], "keyspace": "scribe-sight", "min_position": key["__position"]})
			good := http.Header{"Authorization": {"Bearer " + key["key"].(string)}}
			upstream := newUpstream(t)
			verifier, api := newCountedHop(t, strings.TrimPrefix(p.url, "http://")), newCountedHop(t, upstream.addr())
			g := startGateway(t, k, verifier.Addr().String(), api.Addr().String(), api.Addr().String(), false)
			const requests = 30
			for _, c := range []struct {
				name   string
				client func() *http.Client
			}{
				{"one client", func() func() *http.Client { c := newClient(t); return func() *http.Client { return c } }()},
				{"a client for each request", func() *http.Client { return newClient(t) }},
			} {
				asked, passed, hits := verifier.opened.Load(), api.opened.Load(), upstream.hits.Load()
				for i := range requests {
					header, want := good, 200
					if i%3 == 2 {
						header, want = http.Header{}, 401
					}
					if x := send(t, c.client(), []string{"GET", "POST"}[i%2], g.url, "/api/v1/org", header, nil); x.status != want {
						t.Fatalf("%s, request %d: %d %s", c.name, i, x.status, x.body)
					}
				}
				asked, passed, hits = verifier.opened.Load()-asked, api.opened.Load()-passed, upstream.hits.Load()-hits
				t.Logf("%s: %d requests, %d of them allowed; %d connections to the verifier, %d to the API", c.name, requests, hits, asked, passed)
				if hits != requests*2/3 || asked > requests/5 || passed > requests/5 {
					t.Errorf("%s: %d connections to the verifier and %d to the API for %d requests", c.name, asked, passed, requests)
				}
			}
		})
	}
}
