package eventlog

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/dial"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/logtest"
)

// childDir makes this test binary a log server on that directory.
const childDir = "EVENTLOG_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		child(dir)
	}
	_ = flag.Set("test.parallel", "4") // those that are parallel wait for elections and disks; -parallel changes it
	goleak.VerifyTestMain(logtest.Settled(m))
}

func childConfig(dir, listen string) server.Config {
	return server.Config{Dir: dir, Listen: listen, MaxStore: testStore, Nodes: nodesConf("n1"),
		Passwords: server.Passwords{Admin: "a", Ctrl: "c", Sys: "s"}}
}

// child serves until its standard input ends, or until it is killed.
func child(dir string) {
	s, err := server.Start(childConfig(dir, "127.0.0.1:0"))
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println(s.URL())
	_, _ = io.Copy(io.Discard, os.Stdin)
	s.Stop()
	os.Exit(0)
}

// startChild returns the child's URL and a function that kills it with SIGKILL.
func startChild(t *testing.T, dir string) (url string, kill func()) {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), childDir+"="+dir)
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		_ = in.Close()
	})
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "nats://") {
		t.Fatalf("the child says %q, %v", line, err)
	}
	return strings.TrimSpace(line), kill
}

// A server killed at any moment under load has lost nothing acknowledged, and
// what was not acknowledged is settled by the same append to its successor.
func TestKillLosesNothing(t *testing.T) {
	dir := t.TempDir()
	url, kill := startChild(t, dir)
	as := func(user, pw string) *nats.Conn {
		return conn(t, func() (*nats.Conn, error) {
			return dial.Connect(url, dial.Login{User: user, Password: dial.Password(pw)})
		})
	}
	id, err := server.Init(t.Context(), as("admin", "a"), server.InitConfig{MaxStore: testStore})
	if err != nil {
		t.Fatal(err)
	}
	const rounds, writers = 3, 6
	type fate struct {
		write events.Write
		seq   events.Seq // 0 = not acknowledged
	}
	var fates []fate
	for round := range rounds {
		// Each round's logs speak to the server that will be killed.
		l := openLog(t, as("ctrl", "c"), Options{AtLeast: events.Position{Log: id}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var mu sync.Mutex
		var acked atomic.Int64
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				var c events.Chain
				a := noted(fmt.Sprintf("r%d_%d", round, w))
				for n := 0; ; n++ {
					write := logtest.Stamp(&c, logtest.Event(a, note(n)))
					seq, err := l.Append(ctx, write)
					func() {
						mu.Lock()
						defer mu.Unlock()
						fates = append(fates, fate{write, seq})
					}()
					if err != nil {
						return
					}
					c.Seq = seq
					acked.Add(1)
				}
			})
		}
		until(t, "appends under load", func() bool { return acked.Load() > 200 })
		kill()
		cancel() // or the writers try again until the server is back
		wg.Wait()
		url, kill = startChild(t, dir)
	}
	nc := as("ctrl", "c")
	l := openLog(t, nc, Options{AtLeast: events.Position{Log: id}})
	if err := l.Check(t.Context(), nil); err != nil {
		t.Error(err)
	}
	acked := 0
	bySeq := map[events.Seq]events.EventID{}
	for _, r := range logtest.ReadAll(t, l) {
		bySeq[r.Seq] = r.ID
	}
	for _, f := range fates {
		if f.seq == 0 {
			if _, err := l.Append(t.Context(), f.write); err != nil {
				t.Errorf("an append without an answer, once more: %v", err)
			}
			continue
		}
		acked++
		if bySeq[f.seq] != f.write.Event.ID {
			t.Errorf("event %d was acknowledged and is lost", f.seq)
		}
	}
	t.Logf("%d kills, %d acknowledged, %d without an answer", rounds, acked, len(fates)-acked)
	logtest.CheckLog(t, l)
}

// A restart in order keeps events, uses, timers and the place of Changes.
func TestRestartKeepsEverything(t *testing.T) {
	dir := t.TempDir()
	s, err := server.Start(childConfig(dir, ""))
	if err != nil {
		t.Fatal(err)
	}
	id := initLog(t, s)
	nc, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	l := openLog(t, nc, Options{})
	fill(t, l, 1000)
	if _, err := l.Publish(t.Context(), "n1", "x", 0, []byte("uses")); err != nil {
		t.Fatal(err)
	}
	key := logtest.NewKeyRef("shop", "acme")
	mark, err := l.Set(t.Context(), events.TimerMark{}, 1000, events.TimerSetting{Key: key, At: events.At(time.Now().Add(300 * time.Millisecond))})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, l, 200)
	before := logtest.ReadAll(t, l)
	closed(nc)
	s.Stop()

	s = testServer(t, childConfig(dir, ""))
	l = openLog(t, conn(t, s.Connect), Options{AtLeast: events.Position{Log: id, Seq: 1200}})
	if err := l.Check(t.Context(), nil); err != nil {
		t.Error(err)
	}
	after := logtest.ReadAll(t, l)
	for i := range before {
		if before[i].Hash != after[i].Hash || before[i].Stored != after[i].Stored {
			t.Errorf("event %d has changed", i+1)
		}
	}
	if m, ok, err := l.Tail(t.Context(), "n1"); err != nil || !ok || string(m.Data) != "uses" {
		t.Errorf("tail: %v %v %v", m, ok, err)
	}
	due := make(chan events.KeyRef, 1)
	stopDue := beside(t, func(ctx context.Context) error {
		return l.Due(ctx, func(_ context.Context, k events.KeyRef) error { due <- k; return nil })
	})
	if now, err := l.Mark(t.Context()); err != nil || now != mark {
		t.Errorf("the mark is %+v, %v; it was %+v", now, err, mark)
	}
	if k := <-due; k != key {
		t.Errorf("%v is due", k)
	}
	_ = stopDue()
}

// proxy stands between a client and its server and can swallow answers.
type proxy struct {
	l      net.Listener
	target string
	mute   atomic.Bool  // what the server says is swallowed
	deaf   atomic.Bool  // what the client says is swallowed
	refuse atomic.Bool  // no new connections
	slow   atomic.Int64 // how many nanoseconds everything is held back
	mu     sync.Mutex
	conns  []net.Conn // guarded by mu
	wg     sync.WaitGroup
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, target: strings.TrimPrefix(target, "nats://")}
	p.wg.Go(p.serve)
	t.Cleanup(func() { l.Close(); p.cut(); p.wg.Wait() })
	return p
}

func (p *proxy) url() string { return "nats://" + p.l.Addr().String() }

func (p *proxy) serve() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("tcp", p.target)
		if err != nil || p.refuse.Load() {
			c.Close()
			if err == nil {
				s.Close()
			}
			continue
		}
		func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.conns = append(p.conns, c, s)
		}()
		p.wg.Go(func() { pump(s, c, &p.deaf, &p.slow) })
		p.wg.Go(func() { pump(c, s, &p.mute, &p.slow) })
	}
}

// pump copies from src to dst, later by slow, but for what comes while it is to
// swallow.
func pump(dst, src net.Conn, swallow *atomic.Bool, slow *atomic.Int64) {
	defer dst.Close()
	defer src.Close()
	type held struct {
		due  time.Time
		data []byte
	}
	queue, ended := make(chan held, 1<<14), make(chan struct{})
	go func() { // joined below
		defer close(ended)
		for h := range queue {
			time.Sleep(time.Until(h.due))
			if _, err := dst.Write(h.data); err != nil {
				src.Close()
			}
		}
	}()
	defer func() { close(queue); src.Close(); dst.Close(); <-ended }()
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		if swallow.Load() {
			continue
		}
		if d := time.Duration(slow.Load()); d > 0 || len(queue) > 0 {
			queue <- held{time.Now().Add(d), append([]byte(nil), buf[:n]...)}
			continue
		}
		if _, err := dst.Write(buf[:n]); err != nil {
			return
		}
	}
}

// cut breaks every connection.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// An acknowledgement that is lost on its way is settled: by Append itself while
// it has time, otherwise by the caller's next Append of the same writes.
func TestLostAck(t *testing.T) {
	t.Parallel()
	s := testServer(t, childConfig("", "127.0.0.1:0"))
	initLog(t, s)
	direct := openLog(t, conn(t, s.Connect), Options{})
	for _, events1 := range []int{1, 3} { // a plain publish, and a batch
		for _, inTime := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d events, in time %v", events1, inTime), func(t *testing.T) {
				p := newProxy(t, s.URL())
				nc := conn(t, func() (*nats.Conn, error) { return dial.Connect(p.url(), dial.Login{User: "ctrl", Password: "c"}) })
				l := openLog(t, nc, Options{})
				before, err := direct.Last(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				var c events.Chain
				var ws []events.Write
				for i := range events1 {
					ws = append(ws, logtest.Stamp(&c, logtest.Event(noted("r"+strconv.Itoa(int(before))), note(i))))
				}
				want := before + events.Seq(events1)
				p.mute.Store(true)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				type answer struct {
					seq events.Seq
					err error
				}
				got := make(chan answer, 1)
				go func() { // joined below
					seq, err := l.Append(ctx, ws...)
					got <- answer{seq, err}
				}()
				until(t, "the append is stored", func() bool { last, err := direct.Last(t.Context()); return err == nil && last == want })
				if !inTime {
					cancel()
					if a := <-got; !errors.Is(a.err, events.ErrUnknownOutcome) {
						t.Errorf("no answer: %d, %v", a.seq, a.err)
					}
				}
				p.mute.Store(false)
				p.cut()
				if !inTime {
					go func() { // joined below
						seq, err := l.Append(t.Context(), ws...)
						got <- answer{seq, err}
					}()
				}
				if a := <-got; a.err != nil || a.seq != want {
					t.Errorf("settled: %d, %v, want %d", a.seq, a.err, want)
				}
				if last, err := direct.Last(t.Context()); err != nil || last != want {
					t.Errorf("the log ends at %d, %v, want %d", last, err, want)
				}
			})
		}
	}
	logtest.CheckLog(t, direct)
}

// A connection that is down gives ErrUnavailable, for nothing was sent; a
// follower stands still and goes on by itself.
func TestConnectionDown(t *testing.T) {
	t.Parallel()
	s := testServer(t, childConfig("", "127.0.0.1:0"))
	initLog(t, s)
	direct := openLog(t, conn(t, s.Connect), Options{})
	p := newProxy(t, s.URL())
	nc := conn(t, func() (*nats.Conn, error) { return dial.Connect(p.url(), dial.Login{User: "ctrl", Password: "c"}) })
	l := openLog(t, nc, Options{})
	v := &view{}
	stop := beside(t, func(ctx context.Context) error { return l.Follow(ctx, 0, v) })
	uses := make(chan int, 1)
	stopUses := beside(t, func(ctx context.Context) error {
		got, err := l.ReadUses(ctx, 0, 10)
		uses <- len(got)
		return err
	})
	fill(t, direct, 10)
	until(t, "ten events", func() bool { next, _, fresh := v.at(); return next == 10 && fresh == 10 })
	p.refuse.Store(true)
	p.cut()
	until(t, "the client notices", func() bool { return !nc.IsConnected() })
	w := first(noted("down"), note(0))
	brief := func() context.Context { // each call tries until it ends
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	if _, err := l.Append(brief(), w); !errors.Is(err, events.ErrUnavailable) {
		t.Errorf("append without a connection: %v", err)
	}
	if _, err := l.Load(brief(), w.Event.Aggregate); !errors.Is(err, events.ErrUnavailable) {
		t.Errorf("load without a connection: %v", err)
	}
	if _, err := l.Last(brief()); !errors.Is(err, events.ErrUnavailable) {
		t.Errorf("last without a connection: %v", err)
	}
	if _, err := l.Publish(brief(), "n1", "x", 0, []byte("x")); !errors.Is(err, events.ErrUnavailable) {
		t.Errorf("publish without a connection: %v", err)
	}
	fill(t, direct, 3000) // more than a follower's channel holds
	if _, err := direct.Publish(t.Context(), "n1", "y", 0, []byte("y")); err != nil {
		t.Fatal(err)
	}
	p.refuse.Store(false)
	until(t, "the follower catches up", func() bool { next, wrong, fresh := v.at(); return next == 3010 && fresh == 3010 && wrong == 0 })
	if n := <-uses; n != 1 {
		t.Errorf("the reader of uses woke with %d", n)
	}
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("follow ended with %v", err)
	}
	if err := stopUses(); err != nil {
		t.Errorf("read uses ended with %v", err)
	}
	nc.Close()
	if _, err := l.Append(t.Context(), w); !errors.Is(err, events.ErrUnavailable) {
		t.Errorf("append on a closed connection: %v", err)
	}
}

// The server restarts on the same address: publishers, readers and followers go on.
func TestServerRestartsUnderUse(t *testing.T) {
	dir := t.TempDir()
	c := childConfig(dir, freeAddr(t))
	s, err := server.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	initLog(t, s)
	nc := conn(t, func() (*nats.Conn, error) { return dial.Connect(s.URL(), dial.Login{User: "ctrl", Password: "c"}) })
	l := openLog(t, nc, Options{})
	const n = 60
	v := &view{}
	stop := beside(t, func(ctx context.Context) error { return l.Follow(ctx, 0, v) })
	read := make(chan events.Seq, n)
	stopRead := beside(t, func(ctx context.Context) error {
		for after := events.Seq(0); after < n; {
			got, err := l.ReadUses(ctx, after, 7)
			if err != nil {
				return err
			}
			for _, m := range got {
				after++
				if m.Seq != after || string(m.Data) != fmt.Sprint(after) {
					return fmt.Errorf("message %d is %d %q", after, m.Seq, m.Data)
				}
				read <- m.Seq
			}
		}
		return nil
	})
	var chain events.Chain
	for i := 1; i <= n; i++ {
		if i == n/3 || i == n/3*2 {
			s.Stop()
			if s, err = server.Start(c); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := l.Publish(t.Context(), "n1", fmt.Sprint(i), events.Seq(i-1), []byte(fmt.Sprint(i))); err != nil {
			t.Fatalf("publish %d: %v", i, err)
		}
		seq, err := l.Append(t.Context(), logtest.Stamp(&chain, logtest.Event(noted("r"), note(i))))
		if err != nil {
			t.Fatalf("append %d: %v", i, err)
		}
		chain.Seq = seq
	}
	t.Cleanup(s.Stop)
	until(t, "all uses are read", func() bool { return len(read) == n })
	until(t, "all events are followed", func() bool { next, wrong, fresh := v.at(); return next == n && fresh == n && wrong == 0 })
	if err := stopRead(); err != nil {
		t.Error(err)
	}
	_ = stop()
	logtest.CheckLog(t, l)
}

// The codes of a conflict, as this server gives them, and a full stream.
func TestConflictCodes(t *testing.T) {
	l := newLog(t)
	fill(t, l, 1)
	a := noted("r")
	logtest.Append(t, l, a, note(0))
	for n := 1; n <= 2; n++ { // the other code needs a cluster: TestCluster
		ws := []events.Write{first(a, note(1)), first(noted("s"), note(1))}[:n]
		msgs, err := l.messages(ws)
		if err != nil {
			t.Fatal(err)
		}
		ack, err := l.publish(t.Context(), msgs)
		if err != nil || ack.Error == nil || ack.Error.ErrCode != codeWrongLast {
			t.Errorf("%d events: %+v, %v, want code %d", n, ack.Error, err, codeWrongLast)
		}
		if _, err := l.Append(t.Context(), ws...); !errors.Is(err, events.ErrConflict) {
			t.Errorf("%d events: %v, want ErrConflict", n, err)
		}
	}
	// An id of another history is the caller's fault and no conflict.
	h, err := l.Load(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 2; n++ {
		ws := []events.Write{first(noted("t"), note(1)), first(noted("u"), note(1))}[:n]
		ws[0].Event.ID = h[0].ID
		if _, err := l.Append(t.Context(), ws...); err == nil || errors.Is(err, events.ErrConflict) || !strings.Contains(err.Error(), "another history") {
			t.Errorf("%d events, one with an id of another history: %v", n, err)
		}
	}
}

func TestFull(t *testing.T) {
	s := testServer(t, server.Config{})
	if _, err := server.Init(t.Context(), conn(t, s.ConnectAdmin), server.InitConfig{MaxStore: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	l := openLog(t, conn(t, s.Connect), Options{})
	var err error
	n := 0
	for ; err == nil && n < 10000; n += 50 {
		var c events.Chain
		var ws []events.Write
		for i := range 50 {
			ws = append(ws, logtest.Stamp(&c, logtest.Event(noted(fmt.Sprint("b", n)), note(i))))
		}
		_, err = l.Append(t.Context(), ws...)
	}
	if !errors.Is(err, events.ErrFull) {
		t.Fatalf("a batch into a full stream: %v", err)
	}
	for err = error(nil); err == nil && n < 20000; n++ {
		_, err = l.Append(t.Context(), first(noted(fmt.Sprint("s", n)), note(n)))
	}
	if !errors.Is(err, events.ErrFull) || !strings.Contains(err.Error(), "the stream KT_LIFE has reached its size limit") {
		t.Errorf("an event into a full stream: %v", err)
	}
	logtest.CheckLog(t, l)

	// The stream of uses forgets its oldest instead, and says so.
	if _, err := l.Publish(t.Context(), "n2", "idle", 0, []byte("idle")); err != nil {
		t.Fatal(err)
	}
	last := events.Seq(0)
	for i := range 60 {
		var err error
		if last, err = l.Publish(t.Context(), "n1", fmt.Sprint(i), last, []byte(strings.Repeat(fmt.Sprint(i%10), 40<<10))); err != nil {
			t.Fatal(err)
		}
	}
	var trimmed *events.TrimmedError
	if _, err := l.ReadUses(t.Context(), 0, 10); !errors.As(err, &trimmed) || trimmed.First < 2 || trimmed.After != 0 {
		t.Fatalf("read what is forgotten: %v", err)
	}
	got, err := l.ReadUses(t.Context(), trimmed.First-1, 100)
	if err != nil || got[0].Seq != trimmed.First {
		t.Errorf("read on after what is forgotten: %d messages, %v", len(got), err)
	}
	var corrupt *events.CorruptError
	if _, err := l.ReadUses(t.Context(), 62, 10); !errors.As(err, &corrupt) {
		t.Errorf("read past the end of the stream: %v", err)
	}
	// A node whose messages are all forgotten goes on.
	for range 2 {
		if seq, err := l.Publish(t.Context(), "n2", "awake", 1, []byte("awake")); err != nil || seq != 62 {
			t.Errorf("after the node's last message was forgotten: %d, %v", seq, err)
		}
	}
	if _, err := l.Publish(t.Context(), "n2", "late", 1, []byte("late")); !errors.Is(err, events.ErrFenced) {
		t.Errorf("after another one went on: %v", err)
	}
}
