package eventlog

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

// patient is how long the tests wait for what must happen: on a machine that is busy
// with other work everything may take many times as long. A wait that succeeds ends at
// once.
const patient = 2 * time.Minute

// freeAddr returns a loopback address that nobody listens on.
func freeAddr(t testing.TB) string {
	t.Helper()
	return freePorts(t, 1)[0]
}

// freePorts returns addresses that nobody listens on. A test stops what listens there
// and starts it again, so their ports are below those that the system gives to
// connections and to listeners that name none: nobody takes one meanwhile.
func freePorts(t testing.TB, n int) (addrs []string) {
	t.Helper()
	const lowest = 10_000
	end := 32_768
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if _, err := fmt.Sscan(string(text), &end); err != nil || end < lowest+1000 {
			t.Fatalf("the system gives ports to connections from %d on, %v: want none below %d", end, err, lowest+1000)
		}
	}
	var err error
	for range 1000 {
		addr := fmt.Sprint("127.0.0.1:", lowest+rand.IntN(end-lowest))
		var l net.Listener
		if l, err = net.Listen("tcp", addr); err != nil {
			continue
		}
		defer l.Close() // in the end: no address comes twice
		if addrs = append(addrs, addr); len(addrs) == n {
			return addrs
		}
	}
	t.Fatalf("no port is free: %v", err)
	return nil
}

// stalls measures for how long the machine ran no goroutine of this process that was
// ready. What an operation took is compared with a bound that is longer by so much.
type stalls struct {
	began   time.Time
	stalled atomic.Int64 // nanoseconds
	seen    atomic.Int64 // nanoseconds from began to the last look
}

const (
	stallLook  = 10 * time.Millisecond
	stallLeast = 30 * time.Millisecond // below it is no stall
)

func watchStalls(t testing.TB) *stalls {
	s := &stalls{began: time.Now()}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		look := time.NewTicker(stallLook)
		defer look.Stop()
		for {
			select {
			case <-stop:
				return
			case <-look.C:
				now := int64(time.Since(s.began))
				if gap := now - s.seen.Swap(now); gap > int64(stallLeast) {
					s.stalled.Add(gap - int64(stallLook))
				}
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
	return s
}

// total returns how long the process was stalled until now.
func (s *stalls) total() time.Duration {
	d := time.Duration(s.stalled.Load())
	if gap := time.Since(s.began) - time.Duration(s.seen.Load()); gap > stallLeast {
		d += gap - stallLook
	}
	return d
}
