package server

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
)

// serverLogger passes the server's lines on: its notices are our debug.
type serverLogger struct{ l *slog.Logger }

func (s serverLogger) put(level slog.Level, format string, v []any) {
	s.l.LogAttrs(context.Background(), level, "nats-server", slog.String("line", fmt.Sprintf(format, v...)))
}

// expected reports whether a warning says what is as it should be: the
// configuration comes with passwords, from the environment or drawn at start,
// and after a crash the timers' state is rebuilt by a scan.
func expected(format string) bool {
	return strings.HasPrefix(format, "Plaintext passwords detected") || strings.Contains(format, "state is outdated; attempting to recover")
}

func (s serverLogger) Noticef(format string, v ...any) { s.put(slog.LevelDebug, format, v) }
func (s serverLogger) Warnf(format string, v ...any) {
	level := slog.LevelWarn
	if expected(format) {
		level = slog.LevelDebug
	}
	s.put(level, format, v)
}
func (s serverLogger) Errorf(format string, v ...any) { s.put(slog.LevelError, format, v) }
func (s serverLogger) Fatalf(format string, v ...any) { s.put(slog.LevelError, format, v) }
func (s serverLogger) Debugf(format string, v ...any) {}
func (s serverLogger) Tracef(format string, v ...any) {}
