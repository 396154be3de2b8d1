// Package loadtest loads a server that runs in a benchmark's process from a process of
// its own. So the benchmark can tell what the server costs: the work of its clients is in
// no figure but the time.
//
// The other process is the same test binary. Its TestMain calls Main first, and the
// benchmark calls Start.
package loadtest

import (
	"encoding/gob"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// Load is what the clients send in one turn.
type Load struct {
	Address  string   // of the server: host and port
	Conns    int      // connections that send at once; those of an address stay open
	Messages [][]byte // each is sent once, by some connection, when its last one is answered
}

// Cost is what a turn took.
type Cost struct {
	Wall time.Duration // from the first message to the last answer
	CPU  time.Duration // of the process that called Run, all of it
}

// started tells the test binary that it is the clients.
const started = "KEYTRAIL_LOADTEST"

// Main plays the loads that Run gives, when Start has started this process, and then ends
// it. Otherwise it returns at once.
func Main(play func(*Load) error) {
	if os.Getenv(started) == "" {
		return
	}
	in, out := gob.NewDecoder(os.Stdin), gob.NewEncoder(os.Stdout)
	for {
		var l Load
		var begin bool
		if in.Decode(&l) != nil || out.Encode("") != nil || in.Decode(&begin) != nil {
			os.Exit(0) // the benchmark has ended
		}
		fault := ""
		if err := play(&l); err != nil {
			fault = err.Error()
		}
		if out.Encode(fault) != nil {
			os.Exit(0)
		}
	}
}

// Clients are the other process.
type Clients struct {
	out *gob.Encoder
	in  *gob.Decoder
}

// Start starts the clients. They end with the benchmark.
func Start(tb testing.TB) *Clients {
	tb.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), started+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		in.Close()
		io.Copy(io.Discard, out)
		cmd.Wait()
	})
	return &Clients{gob.NewEncoder(in), gob.NewDecoder(out)}
}

// Run has the clients send the load and returns what it cost. An answer that the play of
// Main refuses fails the benchmark.
func (c *Clients) Run(tb testing.TB, l *Load) Cost {
	tb.Helper()
	var ready, fault string
	if err := c.out.Encode(l); err != nil {
		tb.Fatal(err)
	}
	if err := c.in.Decode(&ready); err != nil {
		tb.Fatal(err)
	}
	began, used := time.Now(), cpu(tb)
	if err := c.out.Encode(true); err != nil {
		tb.Fatal(err)
	}
	if err := c.in.Decode(&fault); err != nil {
		tb.Fatal(err)
	}
	cost := Cost{time.Since(began), cpu(tb) - used}
	if fault != "" {
		tb.Fatal(fault)
	}
	return cost
}

// cpu returns how long this process has run on all processors.
func cpu(tb testing.TB) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
