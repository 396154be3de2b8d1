//go:build !noengine && linux && amd64

package engine_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/keytrail/keytrail/audit/engine"
)

// Each of these ends a libchdb that has a pipe as stdin (ClickHouse #115666).
func TestSurvivesBadClients(t *testing.T) {
	e, _ := start(t, engine.Config{})
	address := options(t, e).Addr[0]
	pid := e.PID()

	login := func(want int32, change func(*clickhouse.Options)) func(*testing.T) {
		return func(t *testing.T) {
			o := options(t, e)
			change(o)
			if got := code(t, open(t, o).Ping(t.Context())); got != want {
				t.Errorf("code %d, want %d", got, want)
			}
		}
	}
	raw := func(send string, reset bool) func(*testing.T) {
		return func(t *testing.T) {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, send); err != nil {
				t.Fatal(err)
			}
			if reset {
				if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
					t.Fatal(err)
				}
				return
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			// To the end, so that the engine has dealt with it; how it ends is its affair.
			_, _ = io.Copy(io.Discard, conn)
		}
	}
	for _, c := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"wrong password", login(516, func(o *clickhouse.Options) { o.Auth.Password = "wrong" })},
		{"empty password", login(516, func(o *clickhouse.Options) { o.Auth.Password = "" })},
		{"unknown user", login(516, func(o *clickhouse.Options) { o.Auth.Username = "nobody" })},
		{"unknown database", login(81, func(o *clickhouse.Options) { o.Auth.Database = "nowhere" })},
		{"garbage", raw("\xff\xfe\xfd garbage \x00\x01\x02", false)},
		{"HTTP on the native port", raw("GET / HTTP/1.1\r\nHost: x\r\n\r\n", false)},
		{"half a hello, then reset", raw("\x00\x0aclickhouse", true)},
		{"nothing, then reset", raw("", true)},
		{"nothing, then close", raw("", false)},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.do(t)
			if got := value[uint8](t, open(t, options(t, e)), "SELECT toUInt8(1)"); got != 1 || e.PID() != pid {
				t.Errorf("after it: answer %d, pid %d, want 1 and %d", got, e.PID(), pid)
			}
		})
	}
}

func TestListensOnLoopbackOnly(t *testing.T) {
	e, _ := start(t, engine.Config{})
	// The kernel prints 127.0.0.1 as 0100007F, and state 0A is LISTEN.
	ports := map[string]int{}
	for _, address := range []string{options(t, e).Addr[0], e.HTTPAddr()} {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(port)
		if err != nil {
			t.Fatal(err)
		}
		ports[fmt.Sprintf("%04X", n)] = 0
	}
	for _, table := range []string{"tcp", "tcp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", e.PID(), table))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			fields := strings.Fields(line)
			if len(fields) < 4 || fields[3] != "0A" {
				continue
			}
			address, port, _ := strings.Cut(fields[1], ":")
			if _, ours := ports[port]; !ours {
				continue
			}
			ports[port]++
			if address != "0100007F" {
				t.Errorf("port %s listens on %s, want 0100007F", port, address)
			}
		}
	}
	for port, n := range ports {
		if n != 1 {
			t.Errorf("port %s listens %d times, want once", port, n)
		}
	}
}
