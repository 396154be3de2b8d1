package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkReceipt measures, from the moment at which a revocation is acknowledged, how
// long it takes until 16 verifiers refuse the key, and until a receipt says so. Each is
// measured by revocations of its own. Run it with -benchtime 300x.
func BenchmarkReceipt(b *testing.B) {
	c, _ := startEdges(b, 16)
	c.control.data(b, 200, "PUT", "/v1/keyspaces/shop", map[string]any{"key_types": []any{map[string]any{"name": "secret", "prefix": "sk_"}},
		"scopes": []any{map[string]any{"name": "read"}}})
	n := 0
	revoke := func() (path string, ask *revocations) {
		n++
		created := c.control.data(b, 201, "POST", "/v1/keyspaces/shop/keys", map[string]any{"tenant": "acme", "name": fmt.Sprint("k", n), "scopes": []string{"read"}})
		ask = &revocations{t: b, c: c, keys: make([]*revocation, 1)}
		ask.body, _ = json.Marshal(map[string]any{"requests": []any{map[string]any{"key": created["key"], "keyspace": "shop", "scope": "read"}}})
		ask.all("ok")
		path = "/v1/keys/" + created["id"].(string)
		c.control.data(b, 200, "DELETE", path, nil)
		return path, ask
	}
	report := func(b *testing.B, took []time.Duration) {
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
		b.ReportMetric(float64(took[(len(took)*99-1)/100].Microseconds())/1000, "p99-ms")
		b.ReportMetric(0, "ns/op")
	}
	b.Run("complete", func(b *testing.B) {
		var took []time.Duration
		for range b.N {
			path, _ := revoke()
			acknowledged := time.Now()
			if r := c.control.data(b, 200, "GET", path+"/receipt?wait=applied&wait_timeout=20s", nil); r["complete"] != true {
				b.Fatal(r)
			}
			took = append(took, time.Since(acknowledged))
		}
		report(b, took)
	})
	b.Run("refused", func(b *testing.B) {
		var took []time.Duration
		for range b.N {
			_, ask := revoke()
			acknowledged := time.Now()
			var refused sync.WaitGroup
			for _, e := range c.edges {
				refused.Go(func() {
					for got := ask.ask(e); len(got) != 1 || got[0] != "key_revoked"; got = ask.ask(e) {
					}
				})
			}
			refused.Wait()
			took = append(took, time.Since(acknowledged))
		}
		report(b, took)
	})
}
