package extauthz

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"

	"github.com/keytrail/keytrail/internal/loadtest"
)

// bare answers every request alike.
type bare struct {
	authv3.UnimplementedAuthorizationServer
	answer *authv3.CheckResponse
}

func (b *bare) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return b.answer, nil
}

// BenchmarkCheck asks the endpoint beside a bare gRPC server that reads the same requests
// and writes the same answers. The clients are a process of their own; the two take turns.
//
//	cpu   what the bare server costs this process, and how many times as much the endpoint
//	rate  requests a second beside those of the bare server: the median of the turns
func BenchmarkCheck(b *testing.B) {
	w := newWorld(b)
	w.level.Set(slog.LevelInfo) // as in production
	w.heartbeat()
	client, url := w.serve()
	ask := held{route: scribe("scope", "read", "resource", "project/proj_1"), peer: stranger, scheme: "https", header: http.Header{
		"Authorization": bearer("project"), "User-Agent": {"curl/8.5.0"}, "Accept": {"*/*"}, "X-Forwarded-Proto": {"https"}, "X-Request-Id": {"5ad5ac1c-7c27-4d6e-9f0e-3f1d2f6d7a11"},
	}}.check(false)
	answer, err := client.Check(b.Context(), ask)
	if err != nil || answer.GetOkResponse() == nil {
		b.Fatal(answer, err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, &bare{answer: answer})
	go s.Serve(l) // ends with Stop
	defer s.Stop()
	message, err := proto.Marshal(ask)
	if err != nil {
		b.Fatal(err)
	}
	const block = 1000
	servers := []string{l.Addr().String(), strings.TrimPrefix(url, "http://")}
	clients, load := loadtest.Start(b), slices.Repeat([][]byte{message}, block)
	var sums [2]loadtest.Cost
	var rates []float64
	sent := 0
	b.ResetTimer()
	for sent < b.N || len(rates) < 5 {
		sent += block
		var turn [2]loadtest.Cost
		for i := range servers {
			n := (i + len(rates)) % len(servers) // each is first in every second turn
			turn[n] = clients.Run(b, &loadtest.Load{Address: servers[n], Conns: 4, Messages: load})
			sums[n].CPU += turn[n].CPU
		}
		rates = append(rates, turn[0].Wall.Seconds()/turn[1].Wall.Seconds())
	}
	slices.Sort(rates)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(sums[0].CPU.Nanoseconds())/float64(sent), "bare-cpu-ns")
	b.ReportMetric(sums[1].CPU.Seconds()/sums[0].CPU.Seconds(), "cpu/bare")
	b.ReportMetric(rates[len(rates)/2], "rate/bare")
}

// playChecks returns the clients of BenchmarkCheck: a connection each, as Envoy has one
// for each of its threads.
func playChecks() func(*loadtest.Load) error {
	open := map[string][]authv3.AuthorizationClient{}
	return func(l *loadtest.Load) error {
		for len(open[l.Address]) < l.Conns {
			conn, err := grpc.NewClient(l.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				return err
			}
			open[l.Address] = append(open[l.Address], authv3.NewAuthorizationClient(conn))
		}
		var next atomic.Int64
		var g errgroup.Group
		for _, c := range open[l.Address][:l.Conns] {
			g.Go(func() error {
				for {
					i := int(next.Add(1)) - 1
					if i >= len(l.Messages) {
						return nil
					}
					var ask authv3.CheckRequest
					if err := proto.Unmarshal(l.Messages[i], &ask); err != nil {
						return err
					}
					if answer, err := c.Check(context.Background(), &ask); err != nil {
						return err
					} else if answer.GetOkResponse() == nil {
						return fmt.Errorf("refused: %v", answer)
					}
				}
			})
		}
		return g.Wait()
	}
}
