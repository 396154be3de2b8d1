//go:build !noengine && linux && amd64

package engine_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/keytrail/keytrail/audit/engine"
)

// envStranger makes the test binary a stranger: a program that knows the engine's
// two addresses, and neither its password nor its files.
const envStranger = "KEYTRAIL_ENGINE_TEST_STRANGER"

// visit is what the stranger knows.
type visit struct {
	Native, HTTP string
	File         string // holds the secret
	Forever      bool   // try again and again until standard input ends
}

// attempt is what came of one thing that the stranger tried.
type attempt struct {
	Native bool
	What   string
	Down   bool   // no answer: nobody listens, or the engine ended
	Status int    // over HTTP
	Code   string // ClickHouse's error code, "" for none
	CORS   string // Access-Control-Allow-Origin
	Text   string // of the answer or the error
}

// strangerSQL is what default could be tried with: without a table (which no
// grant and no quota stops), with rights that it never had, and with its own.
func strangerSQL(file string) []string {
	return []string{
		"SELECT 1",
		"SELECT file('" + file + "')",
		"SELECT * FROM file('" + file + "', 'LineAsString')",
		"SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
		"SELECT * FROM system.users",
		"SELECT count() FROM keytrail.secrets",
		"SELECT sleep(3)",
		"SHOW GRANTS",
		"SHOW DATABASES",
		"INSERT INTO keytrail.secrets VALUES (1)",
		"CREATE DATABASE mine",
		"SYSTEM STOP LISTEN TCP",
		"SYSTEM STOP LISTEN HTTP",
		"SYSTEM SHUTDOWN",
		"KILL QUERY WHERE 1",
	}
}

// beStranger tries everything and prints an attempt a line.
func beStranger(config string) {
	var v visit
	if err := json.Unmarshal([]byte(config), &v); err != nil {
		panic(err)
	}
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	out := json.NewEncoder(os.Stdout)
	for {
		for _, a := range v.tryAll() {
			if err := out.Encode(a); err != nil {
				panic(err)
			}
		}
		select {
		case <-ended:
			return
		default:
			if !v.Forever {
				return
			}
		}
	}
}

func (v visit) tryAll() []attempt {
	var all []attempt
	for _, sql := range strangerSQL(v.File) {
		all = append(all, v.overNative(sql))
		for _, extra := range []string{"", "&session_id=mine", "&max_sessions_for_user=100&user=default&password=", "&add_http_cors_header=1"} {
			all = append(all, v.overHTTP(http.MethodPost, "/?"+extra, sql),
				v.overHTTP(http.MethodGet, "/?query="+url.QueryEscape(sql)+extra, ""))
		}
	}
	for _, path := range []string{"/play", "/dashboard", "/binary", "/merges", "/replicas_status", "/metrics", "/"} {
		all = append(all, v.overHTTP(http.MethodGet, path, ""))
	}
	return append(all, v.overHTTP(http.MethodOptions, "/?add_http_cors_header=1", ""))
}

func (v visit) overNative(sql string) attempt {
	a := attempt{Native: true, What: "native: " + sql}
	conn, err := clickhouse.Open(&clickhouse.Options{Addr: []string{v.Native}, Auth: clickhouse.Auth{Username: "default", Database: "default"}})
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	err = conn.Exec(context.Background(), sql)
	var exception *clickhouse.Exception
	switch {
	case errors.As(err, &exception):
		a.Code, a.Text = fmt.Sprint(exception.Code), exception.Message
	case err != nil:
		a.Down, a.Text = true, err.Error()
	}
	return a
}

// strangersClient keeps no connection, which would outlive an engine.
var strangersClient = http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Minute}

func (v visit) overHTTP(method, path, body string) attempt {
	a := attempt{What: method + " " + path + " " + body}
	req, err := http.NewRequest(method, "http://"+v.HTTP+path, strings.NewReader(body))
	if err != nil {
		panic(err)
	}
	req.Header.Set("Origin", "http://page.example")
	resp, err := strangersClient.Do(req)
	if err != nil {
		a.Down, a.Text = true, err.Error()
		return a
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	a.Status, a.Text = resp.StatusCode, string(text)
	a.Code, a.CORS = resp.Header.Get("X-ClickHouse-Exception-Code"), resp.Header.Get("Access-Control-Allow-Origin")
	return a
}

// stranger is the running stranger. As root its user is another one; else it only
// lacks the password.
type stranger struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.Closer
	said *bufio.Scanner
}

const theSecret = "this file is not the stranger's"

func sendStranger(t *testing.T, e *engine.Engine, forever bool) *stranger {
	t.Helper()
	file := filepath.Join(t.TempDir(), "root.key")
	if err := os.WriteFile(file, []byte(theSecret), 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(visit{Native: options(t, e).Addr[0], HTTP: e.HTTPAddr(), File: file, Forever: forever})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = []string{envStranger + "=" + string(config)}
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	if os.Getuid() == 0 {
		const nobody = 65534
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewScanner(out)
	said.Buffer(nil, 1<<20)
	return &stranger{t: t, cmd: cmd, in: in, said: said}
}

// next returns the next attempt, after checking that it came to nothing.
func (s *stranger) next() (attempt, bool) {
	if !s.said.Scan() {
		return attempt{}, false
	}
	var a attempt
	if err := json.Unmarshal(s.said.Bytes(), &a); err != nil {
		s.t.Fatalf("the stranger said %q", s.said.Bytes())
	}
	if strings.Contains(a.Text, theSecret) || a.CORS != "" {
		s.t.Errorf("%s: CORS header %q, answer %q", a.What, a.CORS, a.Text)
	}
	switch {
	case a.Down:
	case a.Native || strings.HasPrefix(a.What, "POST /?"):
		if a.Code != "700" || !a.Native && a.Status < 400 {
			s.t.Errorf("%s: status %d, code %q, want the login rejected with code 700: %s", a.What, a.Status, a.Code, a.Text)
		}
	case a.Status != http.StatusNotFound && a.Status != http.StatusNotImplemented:
		s.t.Errorf("%s: status %d, want 404 or 501: %s", a.What, a.Status, a.Text)
	}
	return a, true
}

// end lets the stranger finish, and checks what it still says.
func (s *stranger) end() {
	if err := s.in.Close(); err != nil {
		s.t.Error(err)
	}
	for _, more := s.next(); more; _, more = s.next() {
	}
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("the stranger: %v", err)
	}
}

// Invariant 1: whoever lacks the password is rejected at both ports, whether
// default's quota is used up or not.
func TestStrangerIsRejected(t *testing.T) {
	for name, spare := range map[string]int{"after the quota": 0, "before the quota": 1_000_000} {
		t.Run(name, func(t *testing.T) {
			e, _ := start(t, engine.WithSpareQueries(engine.Config{}, spare))
			owner := open(t, options(t, e))
			execute(t, owner, "CREATE TABLE secrets (n UInt64) ENGINE = MergeTree ORDER BY n")
			pid := e.PID()

			s := sendStranger(t, e, false)
			tried := 0
			for a, more := s.next(); more; a, more = s.next() {
				tried++
				if a.Down {
					t.Errorf("%s: no answer: %s", a.What, a.Text)
				}
			}
			s.end()
			if want := 15*9 + 8; tried != want {
				t.Errorf("%d attempts, want %d", tried, want)
			}

			if got := value[uint64](t, owner, "SELECT count() FROM secrets"); got != 0 || e.PID() != pid {
				t.Errorf("after it: %d rows, pid %d, want 0 and %d", got, e.PID(), pid)
			}
			if err := open(t, options(t, e)).Ping(t.Context()); err != nil {
				t.Errorf("the owner cannot connect any more: %v", err)
			}
			// The owner can do what the stranger tried: the attempts were real.
			file := filepath.Join(t.TempDir(), "owners")
			if err := os.WriteFile(file, []byte("of the owner"), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := value[string](t, owner, "SELECT file('"+file+"')"); got != "of the owner" {
				t.Errorf("the owner reads %q", got)
			}
		})
	}
}

// A stranger who never stops trying is not let in by a restart either: the engine
// takes default's one session before it opens a port.
func TestStrangerIsRejectedDuringRestarts(t *testing.T) {
	e, _ := start(t, engine.Config{})
	run(t, e)
	s := sendStranger(t, e, true)
	rejected := func(n int) {
		t.Helper()
		for n > 0 {
			a, more := s.next()
			if !more {
				t.Fatal("the stranger ended")
			}
			if a.Code == "700" {
				n--
			}
		}
	}
	for range 5 {
		rejected(20)
		if err := e.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := e.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	rejected(150)
	s.end()
}
