package ops

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// StopLimit is how long a process of ours may take to end after it was asked to:
// a parts.Group's grace and what is closed after it. It must be less than the
// stop_grace_period of docker-compose.yml, after which the process is killed
// without a word.
const StopLimit = 14 * time.Second

// sameSignal is how soon after the first a second signal is its echo: timeout(1),
// for one, signals its child and then the group that the child is in.
const sameSignal = 500 * time.Millisecond

// Interrupted returns a context that ends at the first SIGINT, SIGTERM or SIGHUP (the
// terminal is gone; but not under nohup, which says to go on): an orderly stop. The next one ends the process at once, with a sentence on w and
// the exit code that shells give to a process that the signal killed.
func Interrupted(parent context.Context, w io.Writer) context.Context {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	go func() { // ends with the process
		<-signals
		first := time.Now()
		cancel()
		for s := range signals {
			if time.Since(first) < sameSignal {
				continue
			}
			fmt.Fprintf(w, "keytrail: ended at once by a second %s; uses of the last moments may be lost, and are then on the record as a gap\n", name(s))
			os.Exit(128 + int(s.(syscall.Signal)))
		}
	}()
	return ctx
}

func name(s os.Signal) string {
	if s == os.Interrupt {
		return "Ctrl-C"
	}
	return s.String()
}

// exit is os.Exit; replaced by tests.
var exit = os.Exit

// OutliveReaders lets the process go on when nobody reads its output any more. The
// Ctrl-C that stops `keytrail up | tee file` ends tee at once, and without this the
// next line of the log would end the process in the middle of its stop.
func OutliveReaders() {
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // not Ignore, which children would inherit
}

// LimitStop ends the process, with exit code 1 and a sentence on w, if it still
// runs StopLimit after ctx has ended. release calls that off.
func LimitStop(ctx context.Context, w io.Writer) (release func()) {
	ctx, cancel := context.WithCancel(ctx)
	released := make(chan struct{})
	go func() { // ends with release
		defer cancel()
		<-ctx.Done()
		t := time.NewTimer(StopLimit)
		defer t.Stop()
		select {
		case <-released:
		case <-t.C:
			fmt.Fprintf(w, "keytrail: ended, because it had not stopped %v after it was asked to; its log names the parts that hang\n", StopLimit)
			exit(1)
		}
	}()
	return func() {
		close(released)
		cancel()
	}
}
