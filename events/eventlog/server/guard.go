package server

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/proxy"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

func listen(addr string) (net.Listener, error) {
	host, port, err := hostPort(addr)
	if err != nil {
		return nil, err
	}
	return net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(max(port, 0))))
}

// open lets clients in through the proxy.
func (s *Server) open(l net.Listener) {
	logger := s.config.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	s.listener, s.shares = l, new(proxy.Shares)
	s.proxy = proxy.New(proxy.Config{Dial: s.s.InProcessConn, Trusted: users, Limits: s.config.Limits, Shares: s.shares, Logger: logger})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.guard(ctx); err != nil && ctx.Err() == nil {
			logger.LogAttrs(ctx, slog.LevelError, "the log server does not know how full KT_USE is, and keeps no shares of it", slog.Any("err", err))
		}
	}()
	s.endGuard = func() { cancel(); <-done }
	s.proxy.Serve(l)
}

const roomEvery = time.Second

// said returns what the server says in a header of its own. It appends to what the
// message was stored with, so the last value counts: a node may have written the first.
func said(m *nats.Msg, header string) string {
	v := m.Header[header]
	if len(v) == 0 {
		return ""
	}
	return v[len(v)-1]
}

// guard keeps the shares of KT_USE, and tells control which nodes met which limits,
// until ctx ends.
func (s *Server) guard(ctx context.Context) error {
	nc, err := s.Connect()
	if err != nil {
		return err
	}
	defer nc.Close()
	if _, err := nc.Subscribe(streams.UseTail, func(m *nats.Msg) {
		seq, _ := strconv.ParseUint(said(m, jetstream.SequenceHeader), 10, 64)
		size, _ := strconv.ParseInt(said(m, "Nats-Msg-Size"), 10, 64)
		node := strings.TrimPrefix(said(m, jetstream.SubjectHeader), events.UsePrefix)
		s.shares.Stored(node, seq, size)
	}); err != nil {
		return err
	}
	if _, err := nc.Subscribe(streams.Copied, func(m *nats.Msg) {
		if seq, err := strconv.ParseUint(string(m.Data), 10, 64); err == nil {
			s.shares.Copied(seq)
		}
	}); err != nil {
		return err
	}
	for {
		if m, err := nc.RequestWithContext(ctx, "$JS.API.STREAM.INFO."+streams.Use, nil); err == nil {
			var si jetstream.StreamInfo
			if json.Unmarshal(m.Data, &si) == nil && si.Config.MaxBytes > 0 {
				s.shares.SetRoom(si.Config.MaxBytes, si.State.FirstSeq, int(s.nodes.Load()))
			}
		}
		for c, n := range s.proxy.Take() {
			b, err := json.Marshal(streams.Limit{Node: events.NodeID(c.Node), Limit: c.Limit, Times: n})
			if err == nil {
				_ = nc.Publish(streams.Limited, b)
			}
		}
		if err := wait(ctx, roomEvery); err != nil {
			return err
		}
	}
}
