package ops

import (
	"container/list"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keytrail/keytrail/internal/api"
)

// maxConns bounds the connections of a process, and the requests that it holds at
// one moment, of which HTTP/2 puts many on one connection. So it bounds what their
// headers can cost: each may hold 64 KB of them.
const maxConns = 8192

// conns is a listener that keeps at most max connections open. Strangers may open
// any number, and each takes one of the files that the process may have open: in
// `up` the log would be left without. Beyond max the connection that has been silent
// longest is closed for the new one; when none is silent, the new one is closed.
type conns struct {
	net.Listener
	max      int
	refused  prometheus.Counter
	requests atomic.Int64 // that are held

	mu     sync.Mutex
	open   map[net.Conn]*list.Element // guarded by mu; its element of silent, nil while a request is answered
	silent list.List                  // guarded by mu; of net.Conn, without a request; longest first
}

// limitConns keeps the connections of ln to maxConns, and to half the files that
// the process may have open.
func limitConns(ln net.Listener, reg prometheus.Registerer) *conns {
	c := &conns{Listener: ln, max: maxConns, open: map[net.Conn]*list.Element{}}
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err == nil && files.Cur/2 < maxConns {
		c.max = max(1, int(files.Cur/2))
	}
	c.refused = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "keytrail_http_connections_refused_total",
		Help: "Connections that were closed unanswered because too many were open and each had a request.",
	})
	reg.MustRegister(c.refused)
	return c
}

// Accept returns the next connection for which there is room.
func (c *conns) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil || c.add(conn) {
			return conn, err
		}
		c.refused.Inc()
		conn.Close()
	}
}

// limit passes on as many requests at once as there may be connections, and answers
// 503 to the others.
func (c *conns) limit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer c.requests.Add(-1)
		if c.requests.Add(1) > int64(c.max) {
			api.Write(w, r, api.Unavailable(1, "too many requests are being answered; nothing was done"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (c *conns) add(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) >= c.max {
		longest := c.silent.Front()
		if longest == nil {
			return false
		}
		old := longest.Value.(net.Conn)
		c.drop(old)
		old.Close()
	}
	c.open[conn] = c.silent.PushBack(conn)
	return true
}

// closeSilent closes the connections on which no request is being answered.
// http.Server.Shutdown waits 5 s for those that never had one.
func (c *conns) closeSilent() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for at := c.silent.Front(); at != nil; at = c.silent.Front() {
		conn := at.Value.(net.Conn)
		c.drop(conn)
		conn.Close()
	}
}

// drop forgets a connection. The caller holds mu.
func (c *conns) drop(conn net.Conn) {
	if at := c.open[conn]; at != nil {
		c.silent.Remove(at)
	}
	delete(c.open, conn)
}

// state follows the connections of the server; it is its ConnState.
func (c *conns) state(conn net.Conn, s http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, ok := c.open[conn]
	switch {
	case !ok: // closed for another one
	case s == http.StateClosed || s == http.StateHijacked:
		c.drop(conn)
	case s == http.StateIdle && at == nil:
		c.open[conn] = c.silent.PushBack(conn)
	case s == http.StateActive && at != nil:
		c.silent.Remove(at)
		c.open[conn] = nil
	}
}
