package eventlog

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

const (
	// reserve is which share of the lifecycle stream is kept for events that take
	// power away: the last tenth. At 500 bytes an event, a stream of 1 GiB keeps room
	// for 200,000 revocations.
	reserve = 10
	// defaultConsumers is what nats-server 2.15 admits to a stream that sets no limit
	// of its own (JSDefaultMaxConsumersPerStream).
	defaultConsumers = 1000
	// nearly is when a stream or its consumers are worth a look: 80 %.
	nearly = 80
)

// Fill says how full a stream is.
type Fill struct {
	Stream                  string
	Bytes, Limit            int64 // Limit is max_bytes, at most 0 for none
	Consumers, MaxConsumers int
	Keeps                   bool // must not lose its oldest messages
}

// Percent returns how much of its limit the stream uses, 0 when it has none.
func (f Fill) Percent() int64 {
	if f.Limit <= 0 {
		return 0
	}
	return f.Bytes * 100 / f.Limit
}

// String is a clause, as "KT_LIFE uses 12 % of 8589934592 bytes".
func (f Fill) String() string {
	return fmt.Sprintf("%s uses %d %% of %d bytes", f.Stream, f.Percent(), f.Limit)
}

// Warning returns what an operator should do about the stream, "" for nothing: it
// uses 80 % of its bytes or of its consumers. KT_USE and KT_CHECKPOINT forget the oldest by design
// and are never too full; KT_TIMER would too, without a word, if it were let.
func (f Fill) Warning() string {
	switch {
	case f.Keeps && f.Percent() >= nearly:
		return fmt.Sprintf("%s: raise its limit with `keytrail log grow %s SIZE`", f, f.Stream)
	case f.Consumers*100 >= f.MaxConsumers*nearly:
		return fmt.Sprintf("%s has %d of at most %d consumers, and Keytrail makes one or none: remove those that others made", f.Stream, f.Consumers, f.MaxConsumers)
	}
	return ""
}

// Fills returns how full the streams are, as last seen, by name. Watch keeps it
// fresh.
func (t *transport) Fills() []Fill {
	t.state.mu.Lock()
	defer t.state.mu.Unlock()
	var out []Fill
	for _, f := range t.state.fills {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b Fill) int { return cmp.Compare(a.Stream, b.Stream) })
	return out
}

// LookAtStreams asks once how full each stream is. A verifier's account may not.
func (l *Log) LookAtStreams(ctx context.Context) error {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	for _, name := range streams.Names() {
		if _, err := l.info(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// watchEvery is how often Watch looks.
const watchEvery = 500 * time.Millisecond

// Watch looks at the streams now and twice a second, tells once when one begins
// to be too full, and returns ctx's error.
func (l *Log) Watch(ctx context.Context) error {
	told := map[string]bool{}
	for {
		if l.LookAtStreams(ctx) == nil { // an error is told by whoever reads or writes
			for _, f := range l.Fills() {
				warning := f.Warning()
				if warning != "" && !told[f.Stream] {
					l.log.LogAttrs(ctx, slog.LevelWarn, "stream", slog.String("warning", warning))
				}
				told[f.Stream] = warning != ""
			}
		}
		if err := waitFor(ctx, watchEvery); err != nil {
			return err
		}
	}
}

// Reserved returns nil, or why the lifecycle log should take only what takes power
// away: nine tenths of it are used. Every look at the log's end renews what it
// knows. The error is of class events.ErrFull.
func (l *Lifecycle) Reserved() error {
	l.state.mu.Lock()
	f := l.state.fills[l.stream]
	l.state.mu.Unlock()
	if f.Limit <= 0 || f.Bytes < f.Limit-f.Limit/reserve {
		return nil
	}
	return &events.StateError{Class: events.ErrFull, Reason: fmt.Sprintf("%s, and the rest is kept for changes that take power away (to disable, revoke, expire or narrow a key)", f)}
}
