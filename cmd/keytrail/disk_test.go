package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestFullDisk fills the disk of the log beneath `keytrail up`. Every answer says
// so, and not that the log cannot be reached; keys are verified, also for longer than
// the bound of their keyspace; what the doctor advises mends it; and the change whose outcome was not known is there once after
// the same request again, whether its last bytes had found room or not.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	disk := filepath.Join(dir, "log")
	if err := os.MkdirAll(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=96m,mode=0700"); err != nil {
		t.Skipf("a small file system cannot be mounted here (it needs root): %v", err)
	}
	t.Cleanup(func() { // after the processes have ended
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	p := up(t, dir)
	p.must(t, "keyspace", "apply", "-f", regime)
	made := p.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "ci"})
	doctor := patient{t, p.url, p.root}
	doctor.eventuallySays(nil, "healthy")
	p.wantReason(t, "ok", map[string]any{"key": made["key"], "keyspace": "scribe-sight", "min_position": made["__position"]})

	ballast := filepath.Join(disk, "ballast")
	fill := func(rest int) {
		t.Helper()
		var st syscall.Statfs_t
		if err := syscall.Statfs(disk, &st); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(ballast, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Write(make([]byte, max(int(st.Bavail)*int(st.Bsize)-rest, 0)))
		if rest == 0 && errors.Is(err, syscall.ENOSPC) {
			err = nil // the log has written meanwhile: the disk is as full as it should be
		}
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	fill(20 << 20)
	doctor.says(nil, "FAIL ready log disk: the disk of the log has", "do: make room on the disk of --dir before it is full")
	fill(0)
	tried := 0 // the last block of the file may have room for a few events
	create := func() (int, string) {
		t.Helper()
		name := fmt.Sprint("unsure-", tried)
		status, _, b := p.raw(t, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]string{"Idempotency-Key": name}, map[string]any{"tenant": "acme", "name": name})
		return status, string(b)
	}
	// Before two writes have gone without an answer nobody knows that more would.
	began := time.Now()
	status, body := create()
	for ; status == 201 && tried < 50 || status == 503 && time.Since(began) < patience; status, body = create() {
		if status == 201 {
			tried++
		}
	}
	if status != http.StatusInsufficientStorage || !strings.Contains(body, "its disk is full") || !strings.Contains(body, "Keys are still verified") ||
		strings.Contains(body, "cannot be reached") {
		t.Errorf("a key on a full disk: %d %s", status, body)
	}
	for last := time.Now().Add(12 * time.Second); time.Now().Before(last); time.Sleep(250 * time.Millisecond) { // passes the bound of 10 s in real time: the process has no clock to step
		if v := p.verify(t, map[string]any{"key": made["key"], "keyspace": "scribe-sight"}); v["reason"] != "ok" { // never stale
			t.Fatalf("a key on a full disk: %v", v)
		}
	}
	status, _, ready := p.raw(t, "GET", "/readyz", nil, nil)
	if body = string(ready); status != 200 || !strings.Contains(body, `"status":"degraded"`) || !strings.Contains(body, "stores nothing in KT_") || !strings.Contains(body, ": its disk is full") {
		t.Errorf("/readyz on a full disk: %d %s", status, body)
	}
	// The last block of a stream may have room for the note of a first reading.
	doctor.eventuallySays(nil, "FAIL ready log: the log server answers, and stores nothing", "do: make room on the disk of the log's server", "FAIL record")
	// An event may have found room, and its acknowledgement none. What the log holds of it
	// is not shown then, and the key is not to blame.
	if doctor.check(nil, "ok operator key") != "" {
		doctor.eventuallySays(nil, "FAIL operator key this node cannot make sure that every node learns of what it would answer", "do: make room on the disk of the log's server", "FAIL record")
		if out, _, _ := p.cli(t, "doctor"); strings.Contains(out, "use another administrator's key") {
			t.Errorf("the doctor blames the key:\n%s", out)
		}
	}

	// The advice: room, and a restart.
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	p.cmd.Process.Signal(os.Interrupt) // it says that its last uses are not stored
	<-p.exited
	p = up(t, dir)
	doctor.url = p.url
	doctor.eventuallySays(nil, "ok ready up", "ok record")
	status, body = create()
	for again := patiently(t); status == http.StatusServiceUnavailable; status, body = create() {
		again(body)
	}
	if status != 200 && status != 201 {
		t.Errorf("the same request again: %d %s", status, body)
	}
	if out := p.must(t, "key", "list", "--keyspace", "scribe-sight", "--json"); strings.Count(out, `"unsure-`) != tried+1 || strings.Count(out, `"ci"`) != 1 {
		t.Errorf("the keys after a full disk: %s", out)
	}
	p.stop(t)
}
