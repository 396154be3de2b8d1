// Package proxy stands between the clients of a NATS server and the server, and
// bounds what each verifier node's account may ask of it. NATS bounds an account's
// connections and subscriptions, and not its rate, so that one stolen credential could
// keep the log busy for everyone.
//
// A node that asks for more than Limits is read more slowly, over all of its
// connections, and nobody else waits. A connection that goes on so for five seconds is
// cut off. Requests that make the server walk a whole stream, and uses beyond the node's
// share of KT_USE (Shares), are sent to a subject where nobody listens: the client is
// told at once that nothing answers. Users that are no node's (control, auditor, admin)
// pass as they are.
//
// The proxy reads each operation and writes it anew in its canonical form. So whatever
// it could not read as the server does, the server never sees.
package proxy

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Config says what a Proxy stands before.
type Config struct {
	Dial    func() (net.Conn, error) // connects to the server
	Trusted []string                 // the users that are not bounded
	Limits  Limits
	Shares  *Shares // nil = none are kept
	Logger  *slog.Logger
}

// Proxy lets clients in to a server.
type Proxy struct {
	cfg  Config
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu       sync.Mutex
	nodes    map[string]*node // that were let in
	hosts    map[string]*rate.Limiter
	counts   map[Count]uint64
	told     map[Count]time.Time
	listener net.Listener
}

// Count names what is counted: how often a node met a limit.
type Count struct{ Node, Limit string }

// New returns a proxy that is not serving yet.
func New(cfg Config) *Proxy {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Proxy{cfg: cfg, nodes: map[string]*node{}, hosts: map[string]*rate.Limiter{}, counts: map[Count]uint64{}, told: map[Count]time.Time{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// Serve lets in who connects to l until CloseListener or Close.
func (p *Proxy) Serve(l net.Listener) {
	p.mu.Lock()
	p.listener = l
	p.mu.Unlock()
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) || p.ctx.Err() != nil {
				return
			}
			if err != nil { // no more files, for example
				p.cfg.Logger.LogAttrs(p.ctx, slog.LevelWarn, "a connection to the log is not accepted", slog.Any("err", err))
				if pause(p.ctx, 100*time.Millisecond) != nil {
					return
				}
				continue
			}
			p.wg.Go(func() { p.serve(c) })
		}
	})
}

// CloseListener lets nobody in any more. Connections stay.
func (p *Proxy) CloseListener() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		_ = p.listener.Close()
	}
}

// Close ends every connection and waits for them.
func (p *Proxy) Close() {
	p.stop()
	p.CloseListener()
	p.wg.Wait()
}

// Take returns how often each node met a limit since the last call.
func (p *Proxy) Take() map[Count]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := p.counts
	p.counts = map[Count]uint64{}
	return taken
}

const (
	connectsPerSecond = 50 // of one host; 200 at once
	longestPace       = time.Second
	loginTime         = 10 * time.Second
	writeTime         = 10 * time.Second // a client that does not read for so long is cut off, as by the server
	tellEvery         = time.Minute
	upBuffer          = 16 << 10 // each connection has two of each
	downBuffer        = 32 << 10
	// longestWait is how long a client may go on asking for too much. Then it is cut
	// off, and what it has sent meanwhile is dropped; about as long as its own pings
	// would wait.
	longestWait = 5 * time.Second
	calm        = time.Second // without a wait, and it begins anew
)

var errCrowded = errors.New("too many connections of this host at once")

// pace waits until another connection of the host may begin. A login costs the server
// a slow hash. A client that would wait for longer than longestPace is turned away at
// once. So a stranger cannot take all the files that the process may open, and clients
// that come back together from behind one address are let in while they still wait: a
// client hangs up after two seconds, and its turn would be lost.
func (p *Proxy) pace(host string) error {
	p.mu.Lock()
	if len(p.hosts) > 10_000 {
		clear(p.hosts)
	}
	l := p.hosts[host]
	if l == nil {
		l = rate.NewLimiter(connectsPerSecond, 4*connectsPerSecond)
		p.hosts[host] = l
	}
	crowded := l.Tokens() < 1-connectsPerSecond*longestPace.Seconds()
	wait := time.Duration(0)
	if !crowded {
		wait = l.Reserve().Delay()
	}
	p.mu.Unlock()
	if crowded {
		return errCrowded
	}
	return pause(p.ctx, wait)
}

// session is one client's connection.
type session struct {
	*Proxy
	client, server net.Conn
	up             *bufio.Writer // to the server
	in             *reader       // from the client
	behind, waited time.Time     // since when operations have had to wait, and when the last one had

	trusted    atomic.Bool   // it asks to be let in as one of Config.Trusted
	authorized chan struct{} // closed once the server has let the client in
	writes     writes        // that await an answer
}

func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	host, _, _ := net.SplitHostPort(client.RemoteAddr().String())
	if p.pace(host) != nil {
		return
	}
	server, err := p.cfg.Dial()
	if err != nil {
		return
	}
	defer server.Close()
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { client.Close(); server.Close() })()
	s := &session{Proxy: p, client: client, server: server, up: bufio.NewWriterSize(server, upBuffer), in: &reader{r: bufio.NewReaderSize(client, upBuffer), login: true},
		authorized: make(chan struct{}), writes: writes{byTo: map[string][]*write{}}}
	var down sync.WaitGroup
	down.Go(func() {
		defer cancel()
		_ = s.answers()
	})
	if err := s.questions(ctx); err != nil && !errors.Is(err, io.EOF) && ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
		p.cfg.Logger.LogAttrs(ctx, slog.LevelDebug, "a connection to the log ends", slog.String("from", client.RemoteAddr().String()), slog.Any("err", err))
	}
	cancel()
	down.Wait()
}

// questions passes on what the client asks.
func (s *session) questions(ctx context.Context) error {
	_ = s.client.SetReadDeadline(time.Now().Add(loginTime))
	login, err := s.in.next()
	if err != nil {
		return err
	}
	user, err := login.user()
	if login.verb != "CONNECT" || err != nil {
		return errors.New("want CONNECT and a JSON object")
	}
	s.trusted.Store(slices.Contains(s.cfg.Trusted, user))
	err = login.write(s.up)
	ping, readErr := s.in.next()
	if readErr == nil && ping.verb != "PING" {
		readErr = fmt.Errorf("%s before the login is answered: want PING", ping.verb)
	}
	if err := cmp.Or(err, readErr); err != nil {
		return err
	}
	if err := errors.Join(ping.write(s.up), s.up.Flush()); err != nil {
		return err
	}
	select {
	case <-s.authorized:
	case <-time.After(loginTime):
		return errors.New("no login")
	case <-ctx.Done():
		if s.ctx.Err() == nil {
			// The server's own line does not know the address.
			s.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "a client is not let in to the log", slog.String("from", s.client.RemoteAddr().String()), slog.String("user", user))
		}
		return ctx.Err()
	}
	_ = s.client.SetReadDeadline(time.Time{})
	s.in.login = false
	if s.trusted.Load() {
		_, err := io.Copy(s.server, s.in.r)
		return err
	}
	n := s.node(user)
	for {
		if s.in.r.Buffered() == 0 {
			if err := s.up.Flush(); err != nil {
				return err
			}
		}
		o, err := s.in.next()
		if err != nil {
			return cmp.Or(s.refuse(err), err)
		}
		if o.verb == "CONNECT" {
			return errors.New("a second CONNECT")
		}
		if err := s.admit(ctx, n, &o); err != nil {
			return err
		}
		if err := o.write(s.up); err != nil {
			return err
		}
	}
}

// refuse tells the client why its connection ends.
func (s *session) refuse(err error) error {
	if ne := net.Error(nil); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &ne) {
		return nil
	}
	_ = s.client.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = fmt.Fprintf(s.client, "-ERR '%s'\r\n", err)
	return nil
}

// admit waits until the node may ask for the operation. One that it may not ask for
// goes to a subject without a listener.
func (s *session) admit(ctx context.Context, n *node, o *op) error {
	began, limit := time.Now(), limitOf(o)
	held := []string(nil)
	switch {
	case len(o.reply) > 0 && !bytes.HasPrefix(o.reply, inboxes) && !bytes.HasPrefix(o.reply, aliveAnswers):
		// An answer to a subject of the node's own would be stored there, uncounted.
		o.reply, held = nil, []string{limitForm}
	case o.verb == "PUB" && (limit == limitReads || limit == limitAsks) && !o.readable():
		held = []string{limitForm}
	case o.verb == "PUB" && limit == limitUses && s.cfg.Shares != nil && !s.cfg.Shares.Admit(n.name, len(o.payload)):
		held = []string{limitShare}
	}
	if held != nil {
		o.subject = []byte("kt.refused")
	}
	// What the server has not got yet must not wait with this one.
	waits, err := n.wait(ctx, o, s.up.Flush)
	if w := n.windows[limit]; err == nil && held == nil && o.verb == "PUB" && w != nil {
		begun, waited, werr := w.begin(ctx, s.up.Flush)
		if waited {
			waits = append(waits, limit)
		}
		if err = werr; err == nil {
			s.writes.add(o.reply, begun)
		}
	}
	if o.verb == "UNSUB" {
		s.writes.unsubscribed(o.args)
	}
	if limit != limitReads || held != nil {
		s.count(ctx, n.name, append(held, waits...))
	}
	// Who reads much is no stranger: a node that starts reads the whole log.
	if err == nil && len(waits) > 0 && limit != limitReads {
		if began.Sub(s.waited) > calm {
			s.behind = began
		}
		if s.waited = time.Now(); s.waited.Sub(s.behind) > longestWait {
			return errTooMuch // without a word: clients reconnect after that, and not after -ERR
		}
	}
	return err
}

// Where a node may have answers sent: what is sent there does not leave its account.
var (
	inboxes      = []byte("_INBOX.")
	aliveAnswers = []byte("kt.alive.answer.")
)

var errTooMuch = errors.New("more than this node may ask for, for too long")

func (p *Proxy) node(name string) *node {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.nodes[name]
	if n == nil {
		n = newNode(name, p.cfg.Limits)
		p.nodes[name] = n
	}
	return n
}

func (p *Proxy) count(ctx context.Context, name string, limits []string) {
	for _, limit := range limits {
		c := Count{name, limit}
		p.mu.Lock()
		p.counts[c]++
		tell := time.Since(p.told[c]) >= tellEvery
		if tell {
			p.told[c] = time.Now()
		}
		p.mu.Unlock()
		if tell {
			p.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "a node asks more of the log than it may", slog.String("node", name), slog.String("limit", limit))
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
