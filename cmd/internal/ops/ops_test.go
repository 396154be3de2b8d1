package ops

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestLimitStop(t *testing.T) {
	defer func() { exit = os.Exit }()
	run := func(t *testing.T, end, release time.Duration) (code int, after time.Duration, said string) {
		code = -1
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			var w bytes.Buffer
			exit = func(c int) { code, after = c, time.Since(began) }
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			off := LimitStop(ctx, &w)
			time.AfterFunc(end, cancel)
			time.Sleep(release)
			off()
			synctest.Wait()
			said = w.String()
		})
		return code, after, said
	}
	if code, after, said := run(t, time.Hour, 2*time.Hour); code != 1 || after != time.Hour+StopLimit || !strings.Contains(said, "had not stopped 14s after it was asked to") {
		t.Errorf("a stop that hangs: exit code %d after %v: %s", code, after, said)
	}
	if code, _, said := run(t, time.Hour, time.Hour+StopLimit-time.Second); code != -1 || said != "" {
		t.Errorf("a stop in time: exit code %d: %s", code, said)
	}
	if code, _, said := run(t, 3*time.Hour, 2*time.Hour); code != -1 || said != "" {
		t.Errorf("an end that nobody asked for: exit code %d: %s", code, said)
	}
}

func TestDirIsHeldByOneProcess(t *testing.T) {
	path := t.TempDir() + "/data"
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDir(path); err == nil {
		t.Fatal("a second process got the directory")
	}
	d.Close()
	again, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}
