package main

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keytrail/keytrail/internal/loadtest"
)

// BenchmarkGateways sends requests through nginx with the shipped configuration, to
// Keytrail and in turn to a bare net/http handler that answers nginx's question with the
// same bytes, and through one that asks nobody. The API behind them is another nginx.
// Clients are a process of their own. All figures are µs of CPU for a request:
//
//	nginx, keytrail      of nginx, and of all of `keytrail up` but the local engine
//	bare-nginx, bare     the same with the bare handler
//	proxy-nginx          of the nginx that asks nobody
//	direct, bare-direct  of `keytrail up` and of the bare handler when they are asked without nginx
func BenchmarkGateways(b *testing.B) {
	k := gatewayKinds[slices.IndexFunc(gatewayKinds, func(k gatewayKind) bool { return k.name == "nginx" })]
	k.installed(b)
	p := up(b, filepath.Join(b.TempDir(), "data"), "--trusted-proxy", "127.0.0.1/32")
	p.must(b, "keyspace", "apply", "-f", regime)
	key := p.data(b, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "ci"})
	id, secret := key["id"].(string), key["key"].(string)
	p.must(b, "key", "limit", id, "--per-minute", "100000000", "--burst", "100000000")
	p.wantReason(b, "ok", map[string]any{"key": secret, "keyspace": "scribe-sight", "min_position": key["__position"]})

	request := func(path string, more ...string) []byte {
		return []byte("GET " + path + " HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n" +
			strings.Join(more, "") + "Authorization: Bearer " + secret + "\r\n\r\n")
	}
	direct := request("/v1/authorize/scribe-sight?refusal=header&scope=read", "X-Forwarded-For: 127.0.0.1\r\n", "X-Forwarded-Proto: http\r\n")
	through := request("/api/v1/org")
	keytrail := strings.TrimPrefix(p.url, "http://")
	c, err := loadtest.Dial(keytrail)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	answer, _, err := c.Ask(direct)
	if err != nil || answer.StatusCode != 200 {
		b.Fatal(answer, err)
	}
	answer.Header.Del("Date")
	answer.Header.Del("Content-Length")
	bare := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { maps.Copy(w.Header(), answer.Header) }))
	defer bare.Close()
	api, mirror := freeAddr(b), freeAddr(b)
	startGateway(b, k, keytrail, api, mirror, true) // which is their echo
	gateways := []*gateway{
		startGateway(b, k, bare.Listener.Addr().String(), api, mirror, false),
		startGateway(b, k, keytrail, api, mirror, false),
		startGateway(b, k, keytrail, api, mirror, false, "auth_request /_keytrail;", "auth_request off;", `""      nowhere;`, `""      $kt_upstream;`),
	}

	const block, conns = 2000, 8
	clients := loadtest.Start(b)
	load := func(address string, message []byte) loadtest.Cost {
		return clients.Run(b, &loadtest.Load{Address: address, Conns: conns, Messages: slices.Repeat([][]byte{message}, block)})
	}
	var nginx, handlers [3]time.Duration // of each gateway, and of who answers it
	var alone, bareAlone time.Duration
	sent := 0
	b.ResetTimer()
	for sent < b.N {
		sent += block
		for i, g := range gateways {
			worker := childOf(b, g.pid)
			was, wasBehind := cpuOfPid(b, worker), cpuOfPid(b, p.cmd.Process.Pid)
			own := load(strings.TrimPrefix(g.url, "http://"), through).CPU
			nginx[i] += cpuOfPid(b, worker) - was
			if i == 1 {
				own = cpuOfPid(b, p.cmd.Process.Pid) - wasBehind
			}
			handlers[i] += own
		}
		was := cpuOfPid(b, p.cmd.Process.Pid)
		load(keytrail, direct)
		alone += cpuOfPid(b, p.cmd.Process.Pid) - was
		bareAlone += load(bare.Listener.Addr().String(), direct).CPU
	}
	each := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(sent) }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(each(nginx[1]), "nginx-µs")
	b.ReportMetric(each(handlers[1]), "keytrail-µs")
	b.ReportMetric(each(nginx[0]), "bare-nginx-µs")
	b.ReportMetric(each(handlers[0]), "bare-µs")
	b.ReportMetric(each(nginx[2]), "proxy-nginx-µs")
	b.ReportMetric(each(alone), "direct-µs")
	b.ReportMetric(each(bareAlone), "bare-direct-µs")
}

// childOf returns the one process that pid has started: nginx's worker.
func childOf(b *testing.B, pid int) int {
	b.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		b.Fatal(err)
	}
	for _, file := range stats {
		var child, parent int
		if fields, err := statOf(file); err == nil {
			fmt.Sscan(filepath.Base(filepath.Dir(file)), &child)
			if fmt.Sscan(fields[1], &parent); parent == pid {
				return child
			}
		}
	}
	b.Skip("no /proc here, or no worker of nginx")
	return 0
}

// cpuOfPid returns how long the process has run on all processors, to 10 ms.
func cpuOfPid(b *testing.B, pid int) time.Duration {
	b.Helper()
	fields, err := statOf(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	var user, system int64
	fmt.Sscan(fields[11]+" "+fields[12], &user, &system)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// statOf returns the fields after the process's name, the state first.
func statOf(file string) ([]string, error) {
	line, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	_, rest, _ := strings.Cut(string(line), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return nil, fmt.Errorf("%s: %s", file, line)
	}
	return fields, nil
}
