package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkRoleStart alternates starts of the log's server, of control and of a verifier
// over a log with -start-keys keys with starts over an empty log. Both nodes have the
// snapshots of their last stop.
//
// start reports how long each takes until it is ready, what it computes meanwhile, and
// what memory a key takes of it then. memory reports what memory a key takes once a
// process has come to rest that collects garbage early: little more than what it needs.
func BenchmarkRoleStart(b *testing.B) {
	full, empty := stoppedRoles(b, *startKeys), stoppedRoles(b, 0)
	for _, name := range []string{"start", "memory"} {
		b.Run(name, func(b *testing.B) {
			var took, computed, held [2]map[string]float64
			for i := range 2 {
				took[i], computed[i], held[i] = map[string]float64{}, map[string]float64{}, map[string]float64{}
			}
			for b.Loop() {
				for i, c := range []*stopped{full, empty} {
					env := c.env
					if name == "memory" {
						env = append(env[:len(env):len(env)], "GOGC=10")
					}
					c.start(b, env, func(role string, start func() *proc) *proc {
						began := time.Now()
						p := start()
						took[i][role] += time.Since(began).Seconds() * 1000
						computed[i][role] += cpuOf(b, p).Seconds() * 1000
						if name == "memory" {
							held[i][role] += float64(atRest(b, p))
						} else {
							held[i][role] += float64(resident(b, p))
						}
						return p
					})
				}
			}
			for _, role := range []string{"log", "control", "verifier"} {
				b.ReportMetric((held[0][role]-held[1][role])/float64(*startKeys*b.N), role+"-B/key")
				if name == "start" {
					b.ReportMetric(took[0][role]/float64(b.N), role+"-ms")
					b.ReportMetric(computed[0][role]/float64(b.N), role+"-cpu-ms")
					b.ReportMetric(computed[1][role]/float64(b.N), role+"-empty-cpu-ms")
				}
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// stopped is a deployment of which nothing runs.
type stopped struct {
	cluster
	dir string
}

// stoppedRoles makes a deployment with a log of n keys.
func stoppedRoles(b *testing.B, n int) *stopped {
	c := &stopped{dir: b.TempDir()}
	c.nats = "nats://" + freeAddr(b)
	c.env = append(passwords(), "KEYTRAIL_NATS="+c.nats)
	c.start(b, c.env, func(role string, start func() *proc) *proc {
		p := start()
		switch role {
		case "log":
			rootFile := filepath.Join(c.dir, "root.key")
			command(b, c.env, "init", "--nats", c.nats, "--root-key-file", rootFile)
			text, err := os.ReadFile(rootFile)
			if err != nil {
				b.Fatal(err)
			}
			c.root = strings.TrimSpace(string(text))
		case "control":
			if n > 0 {
				importKeys(b, p, n)
			}
		}
		return p
	})
	return c
}

// start starts the roles one after the other, each by begin, and stops them.
func (c *stopped) start(b *testing.B, env []string, begin func(role string, start func() *proc) *proc) {
	var running []*proc
	for _, r := range [][]string{
		{"log", "--dir", filepath.Join(c.dir, "log"), "--listen", strings.TrimPrefix(c.nats, "nats://")},
		{"control", "--nats", c.nats, "--listen", "127.0.0.1:0", "--name", "control-1", "--dir", filepath.Join(c.dir, "control")},
		{"verifier", "--nats", c.nats, "--listen", "127.0.0.1:0", "--name", "verifier-1", "--dir", filepath.Join(c.dir, "verifier")},
	} {
		running = append(running, begin(r[0], func() *proc {
			p := spawn(b, env, r...)
			p.root = c.root
			return p
		}))
	}
	for i := len(running) - 1; i >= 0; i-- {
		running[i].stop(b)
	}
}

// cpuOf returns what the process has computed so far: on a busy machine it says more than
// the time that passed.
func cpuOf(t testing.TB, p *proc) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		t.Skip("no /proc here: ", err)
	}
	_, rest, _ := strings.Cut(string(text), ") ") // behind the name, which may hold spaces
	fields := strings.Fields(rest)
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond // of a clock of 100 Hz, as Linux shows it everywhere
}

// resident returns the bytes of the process's memory that are its own.
func resident(t testing.TB, p *proc) (n int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Skip("no /proc here: ", err)
	}
	_, rest, _ := strings.Cut(string(text), "RssAnon:")
	if _, err := fmt.Sscan(rest, &n); err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// atRest returns resident once it has stayed within a hundredth for 3 seconds.
func atRest(t testing.TB, p *proc) int {
	t.Helper()
	const calm, every = 3 * time.Second, 100 * time.Millisecond
	last, since, began := resident(t, p), time.Now(), time.Now()
	for time.Since(since) < calm && time.Since(began) < patience {
		time.Sleep(every)
		if n := resident(t, p); max(n, last)-min(n, last) > last/100 {
			last, since = n, time.Now()
		}
	}
	return resident(t, p)
}
