package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestProgress: what takes over a second is shown on a terminal, and the line is cleared
// in the end; what is short, and what is no terminal, is left alone.
func TestProgress(t *testing.T) {
	tty, wrote := openTerminal(t)
	show := func(a *app, takes time.Duration) {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			end := a.progress("reading", int64(4*time.Second), func() int64 { return int64(time.Since(began)) })
			time.Sleep(takes)
			end()
		})
	}
	a := &app{err: &visible{w: tty}}
	show(a, 900*time.Millisecond)
	if text := wrote(); text != "" {
		t.Errorf("after less than a second: %q", text)
	}
	show(a, 9*time.Second)
	text := wrote()
	if !strings.Contains(text, "\rreading  25% |") || !strings.Contains(text, "reading  99% |") || strings.ContainsAny(text, "\n\x1b") || strings.Contains(text, `\u`) {
		t.Errorf("%q", text)
	}
	if last := text[strings.LastIndex(strings.TrimRight(text, "\r"), "\r"):]; strings.TrimSpace(last) != "" {
		t.Errorf("the line is not cleared: %q", last)
	}
	var pipe bytes.Buffer
	show(&app{err: &visible{w: &pipe}}, 9*time.Second)
	if pipe.Len() > 0 {
		t.Errorf("on a pipe: %q", pipe.String())
	}
}
