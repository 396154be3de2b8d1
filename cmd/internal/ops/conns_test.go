package ops

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/keytrail/keytrail/internal/parts"
)

// dialed is a listener to which these connections are dialled, one after the other.
type dialed struct {
	net.Listener
	conns []net.Conn
}

func (d *dialed) Accept() (net.Conn, error) {
	if len(d.conns) == 0 {
		return nil, net.ErrClosed
	}
	c := d.conns[0]
	d.conns = d.conns[1:]
	return c, nil
}

// TestConnectionsAreBounded: a new connection takes the place of the one that is
// silent longest, and is turned away when each has a request.
func TestConnectionsAreBounded(t *testing.T) {
	ln := new(dialed)
	c := limitConns(ln, prometheus.NewRegistry())
	c.max = 3
	// dial returns the end that the server accepts, nil when it is turned away, and
	// what tells whether it was closed.
	dial := func() (net.Conn, func() bool) {
		near, far := net.Pipe()
		t.Cleanup(func() { near.Close() })
		ln.conns = append(ln.conns, far)
		accepted, err := c.Accept()
		if (err == nil) != (accepted == far) {
			t.Fatal(accepted, err)
		}
		return accepted, func() bool { return far.SetDeadline(time.Time{}) != nil }
	}
	first, firstClosed := dial()
	second, secondClosed := dial()
	_, thirdClosed := dial()
	c.state(first, http.StateActive)
	c.state(second, http.StateActive)
	c.state(first, http.StateIdle) // later than the third, which has said nothing yet
	fourth, fourthClosed := dial()
	if firstClosed() || secondClosed() || !thirdClosed() || fourthClosed() {
		t.Errorf("closed: %v %v %v %v, want the third alone", firstClosed(), secondClosed(), thirdClosed(), fourthClosed())
	}
	c.state(fourth, http.StateActive)
	fifth, _ := dial()
	if !firstClosed() || fifth == nil {
		t.Errorf("first closed: %v; fifth: %v", firstClosed(), fifth)
	}
	c.state(first, http.StateClosed) // the server hears of it later
	c.state(fifth, http.StateActive)
	if sixth, closed := dial(); sixth != nil || !closed() || testutil.ToFloat64(c.refused) != 1 {
		t.Errorf("sixth: %v, closed %v, %v refused; each other one has a request", sixth, closed(), testutil.ToFloat64(c.refused))
	}
	c.state(second, http.StateClosed)
	if seventh, _ := dial(); seventh == nil {
		t.Error("there was room again")
	}
	if len(c.open) != 3 || c.silent.Len() != 1 {
		t.Errorf("%d connections are counted, %d of them silent; want 3 and 1", len(c.open), c.silent.Len())
	}
}

// pipes is a listener whose connections are pipes, so that a bubble's clock runs while
// a server waits on them.
type pipes struct {
	net.Listener // for its address
	accept       chan net.Conn
	once         sync.Once
	closed       chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

// serving returns a server that listens to pipes, and what opens one: when dial
// returns, the server has the other end.
func serving(t *testing.T) (s *Server, dial func() net.Conn) {
	t.Helper()
	s, err := Listen("127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.ln.Listener.Close()
	p := &pipes{Listener: s.ln.Listener, accept: make(chan net.Conn), closed: make(chan struct{})}
	s.ln.Listener = p
	return s, func() net.Conn {
		near, far := net.Pipe()
		t.Cleanup(func() { near.Close() })
		p.accept <- far
		synctest.Wait()
		return near
	}
}

// TestServerBoundsConnections: the server's own connections are counted, and who asks
// is answered in the place of one that says nothing.
func TestServerBoundsConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, dial := serving(t)
		if s.ln.max < 1 || s.ln.max > maxConns {
			t.Errorf("%d connections", s.ln.max)
		}
		s.ln.max = 1
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		mute, asking, began := dial(), dial(), time.Now()
		if _, err := io.WriteString(asking, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(asking), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Error(resp.Status)
		}
		if _, err := mute.Read(make([]byte, 1)); err == nil || time.Since(began) > 0 {
			t.Errorf("the one that said nothing was open for %v: %v", time.Since(began), err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if synctest.Wait(); len(s.ln.open) > 0 {
			t.Errorf("%d connections are counted after the end", len(s.ln.open))
		}
	})
}

// TestRequestsAreBounded: HTTP/2 puts many requests on one connection, so they are
// bounded by themselves.
func TestRequestsAreBounded(t *testing.T) {
	c := limitConns(new(dialed), prometheus.NewRegistry())
	c.max = 2
	held, finish, done := make(chan struct{}), make(chan struct{}), make(chan int)
	h := c.limit(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { held <- struct{}{}; <-finish }))
	ask := func() int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		return w.Code
	}
	for range 2 {
		go func() { done <- ask() }()
		<-held
	}
	if got := ask(); got != http.StatusServiceUnavailable {
		t.Errorf("the third: %d, want 503", got)
	}
	finish <- struct{}{}
	if got := <-done; got != http.StatusOK {
		t.Error(got)
	}
	go func() { done <- ask() }()
	<-held // there is room again
	close(finish)
	for range 2 {
		if got := <-done; got != http.StatusOK {
			t.Error(got)
		}
	}
}

// TestServerStopsInItsShare: neither a connection that a client opened in advance nor
// a request that hangs keeps the server from stopping within what its Group leaves it.
func TestServerStopsInItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, dial := serving(t)
		begun, release := make(chan struct{}), make(chan struct{})
		s.Mux.HandleFunc("GET /hangs", func(http.ResponseWriter, *http.Request) { close(begun); <-release })
		defer close(release)
		g := &parts.Group{Logger: slog.New(slog.DiscardHandler), Grace: time.Second}
		g.Go("http server", s.Run)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- g.Run(ctx) }()
		dial() // says nothing
		if _, err := io.WriteString(dial(), "GET /hangs HTTP/1.1\r\nHost: h\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		<-begun
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestUnusedConnectionsEndEarly: they alone cost a stop a quarter of its time.
func TestUnusedConnectionsEndEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, dial := serving(t)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		unused := dial()
		if len(s.ln.open) != 1 {
			t.Fatalf("%d connections are open", len(s.ln.open))
		}
		began := time.Now()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		// Shutdown looks twice a second whether the last one is closed.
		if took := time.Since(began); took > drain*4/5/4+500*time.Millisecond {
			t.Errorf("the stop took %v of %v", took, drain)
		}
		if _, err := unused.Read(make([]byte, 1)); err == nil || len(s.ln.open) != 0 {
			t.Errorf("%d connections are open", len(s.ln.open))
		}
	})
}
