package main

import (
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var startKeys = flag.Int("start-keys", 10_000, "how many keys the log of BenchmarkUpStart has")

// BenchmarkUpStart alternates starts of `keytrail up` on a log with keys with starts on
// an empty one, until each is ready, and reports what the process computes until then,
// without the engine, and what memory a key takes of it. -start-keys says how many keys
// there are.
func BenchmarkUpStart(b *testing.B) {
	dirs := []string{filepath.Join(b.TempDir(), "data"), filepath.Join(b.TempDir(), "data")}
	for i, dir := range dirs {
		p := up(b, dir)
		if i == 0 {
			importKeys(b, p, *startKeys)
		}
		p.stop(b)
	}
	var took, computed [2]time.Duration
	var held [2]int
	for b.Loop() {
		for i, dir := range dirs {
			began := time.Now()
			p := up(b, dir)
			took[i] += time.Since(began)
			computed[i] += cpuOf(b, p)
			held[i] += peak(b, p)
			p.stop(b)
		}
	}
	b.ReportMetric(float64(took[0].Milliseconds())/float64(b.N), "ms/start")
	b.ReportMetric(float64(took[1].Milliseconds())/float64(b.N), "empty-ms/start")
	b.ReportMetric(float64(took[0])/float64(took[1]), "ratio")
	b.ReportMetric(float64(computed[0].Milliseconds())/float64(b.N), "cpu-ms/start")
	b.ReportMetric(float64(computed[1].Milliseconds())/float64(b.N), "empty-cpu-ms/start")
	b.ReportMetric(float64(held[0]-held[1])*1024/float64(*startKeys*b.N), "B/key")
	b.ReportMetric(0, "ns/op")
}

// importKeys imports n keys of 100 tenants into a keyspace of their own.
func importKeys(b *testing.B, p *proc, n int) {
	p.data(b, 200, "PUT", "/v1/keyspaces/shop", map[string]any{"key_types": []any{map[string]any{"name": "secret", "prefix": "sk_"}},
		"scopes": []any{map[string]any{"name": "read"}}})
	file := keysFile(b, n, "")
	if out, errs, code := p.cli(b, "key", "import", "--keyspace", "shop", "-f", file, "--from", "the old gateway"); code != 0 {
		b.Fatalf("import ended with %d\n%s%s", code, out, errs)
	}
}

// keysFile returns a file of n keys of 100 tenants, others for each prefix of their names.
func keysFile(b *testing.B, n int, prefix string) string {
	var lines strings.Builder
	for i := range n {
		sum := sha256.Sum256([]byte(fmt.Sprint(prefix, "secret ", i)))
		fmt.Fprintf(&lines, "{\"digest\":%q,\"tenant\":\"t%d\",\"name\":\"%skey %d\"}\n", hex.EncodeToString(sum[:]), i%100, prefix, i)
	}
	file := filepath.Join(b.TempDir(), "keys.jsonl")
	if err := os.WriteFile(file, []byte(lines.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	return file
}
