package embed

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog"
	"github.com/keytrail/keytrail/events/eventlog/dial"
	"github.com/keytrail/keytrail/internal/parts"
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/projections/snapshots"
	"github.com/keytrail/keytrail/verifier"
)

// drain is how long a stopping ledger goes on trying to store its uses: less than the
// share of parts.DefaultGrace that it has when nothing before it hangs, also in a role
// that stops more than the verifier (4.8 s), so that it can still say what it did.
const drain = 4 * time.Second

// Verifier is a verifier node in this process. It is safe for concurrent use.
type Verifier struct {
	log       *eventlog.Log
	views     *snapshots.Views
	ledger    *verifier.Ledger
	node      *verifier.Node
	followers []events.Follower
	end       logEnd
	logger    *slog.Logger
	group     parts.Group

	stop context.CancelCauseFunc // of Open
	done chan struct{}           // closed when Run has returned
	err  error                   // of Run; readable after done
}

// Open connects to the log, follows it and returns a verifier that is ready: it holds a
// lease, its view has reached it, and its ledger is open. ctx bounds that alone: the
// verifier runs until Close, or until it ends by itself, which Done tells.
//
// Errors: input.FieldErrors for a Config that is not acceptable; events.ErrUnavailable
// when no server of the log answers; events.ErrFenced when another process holds the
// name; *events.CorruptError for a log that has lost or altered events; ctx's, with what
// was missing. Nothing runs after an error.
func Open(ctx context.Context, cfg Config) (*Verifier, error) {
	v, err := New(ctx, cfg)
	if err != nil {
		return nil, err
	}
	running, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	v.stop = stop
	go func() { _ = v.Run(running) }() // joined by Close
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		why := v.Ready()
		if why == nil {
			return v, nil
		}
		select {
		case <-tick.C:
		case <-v.done:
			return nil, v.err
		case <-ctx.Done():
			_ = v.Close(context.Background()) // it has answered nothing
			return nil, fmt.Errorf("the verifier did not become ready: %w: %w", why, ctx.Err())
		}
	}
}

// New is Open of a program that manages its parts itself: the verifier is connected and
// its view is restored, and it does nothing until Run. It is not closed, but stops with
// the context of Run.
func New(ctx context.Context, cfg Config) (_ *Verifier, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	v := &Verifier{log: cfg.Log, views: cfg.Views, logger: cfg.Logger, done: make(chan struct{})}
	v.group.Logger = cfg.Logger
	if v.log == nil {
		nc, cerr := dial.Connect(cfg.URL, dial.Login{User: string(cfg.Name), Password: cfg.Password, Name: "keytrail verifier",
			CAFile: cfg.CAFile, CertFile: cfg.CertFile, KeyFile: cfg.KeyFile, Logger: cfg.Logger})
		if cerr != nil {
			return nil, cerr
		}
		v.group.OnStop("log connection", func(context.Context) { nc.Close() })
		defer func() {
			if err != nil {
				nc.Close()
			}
		}()
		if v.log, err = eventlog.Open(ctx, nc, eventlog.Options{Edge: true, AtLeast: events.Position{Log: cfg.LogID}, Logger: cfg.Logger}); err != nil {
			return nil, err
		}
	}
	if v.views == nil {
		if v.views, err = snapshots.Restore(ctx, snapshots.Config{Dir: cfg.Dir, Log: v.log, Sources: cfg.Sources, Logger: cfg.Logger}, false); err != nil {
			return nil, err
		}
	}
	alive := v.log.Alive
	if cfg.TakeOver {
		alive = nil
	}
	v.ledger = verifier.NewLedger(verifier.LedgerConfig{Sink: v.log, Node: cfg.Name, Log: v.log.ID(), Drain: drain, Alive: alive, Logger: cfg.Logger})
	v.node = verifier.NewNode(verifier.NodeConfig{View: v.views.Keys, Ledger: v.ledger, Leases: v.log, Log: v.log.ID(),
		StaleCeiling: cfg.StaleCeiling, TrustedProxies: cfg.TrustedProxies, LimitMail: v.log, Logger: cfg.Logger})

	v.followers = []events.Follower{v.views.Keys, v.node, &v.end}
	if v.views.Directory != nil {
		v.followers = append(v.followers, v.views.Directory)
	}
	v.followers = append(v.followers, cfg.Followers...)

	// A snapshot only makes the next start faster. So the savers stop last, with the time
	// that the others leave.
	for _, s := range v.views.Savers {
		v.group.GoLong("snapshots of "+s.View.Name(), s.Run)
	}
	v.group.Go("lease", v.node.RunLease)
	v.group.Go("limits", v.node.RunLimits)
	v.group.Go("answers", func(ctx context.Context) error { return v.node.RunAnswers(ctx, v.log) })
	v.group.GoLong("ledger", v.ledger.Run)
	v.group.Go("name", func(ctx context.Context) error { return v.hold(ctx, cfg.Name) })
	if v.views.Store != nil {
		v.group.Go("fetched snapshot", v.views.Store.Run)
	}
	v.group.Go("view", func(ctx context.Context) error { return projections.Follow(ctx, v.log, v.followers...) })
	return v, nil
}

// Run runs the verifier until ctx ends, and stops it as Close does, within
// parts.DefaultGrace. It returns nil for an orderly stop, else why the verifier ended or
// what it could not store. It is called once.
func (v *Verifier) Run(ctx context.Context) error {
	defer close(v.done)
	v.err = v.group.Run(ctx)
	return v.err
}

// Close stops the verifier that Open returned: it stores the uses that it holds, gives
// its lease back and closes its connection. It takes until ctx ends at the most, and
// parts.DefaultGrace (12 s) if that is earlier. Decisions after it are verifier_stale, so
// the program stops serving first. The error says what is not durable, or is the one that
// the verifier ended with before. Close may be called again.
func (v *Verifier) Close(ctx context.Context) error {
	by, ok := ctx.Deadline()
	if !ok {
		by = time.Now().Add(parts.DefaultGrace)
	}
	v.stop(parts.AskedBy(by))
	select {
	case <-v.done:
		return v.err
	case <-ctx.Done():
		return fmt.Errorf("the verifier has not stopped yet: %w", ctx.Err())
	}
}

// Done is closed when the verifier has stopped, by Close or by itself: its log is broken,
// or another process has taken its name. Then every decision is verifier_stale, and Close
// returns why.
func (v *Verifier) Done() <-chan struct{} { return v.done }

// Ready returns nil if the verifier can answer, else why not, for people.
func (v *Verifier) Ready() error { return v.node.Ready() }

// Verify is verifier.Node.Verify.
func (v *Verifier) Verify(ctx context.Context, req verifier.Request) (verifier.Decision, error) {
	return v.node.Verify(ctx, req)
}

// Protect is verifier.Node.Protect.
func (v *Verifier) Protect(keyspace events.KeyspaceID, demand func(*http.Request) verifier.Demand) func(http.Handler) http.Handler {
	return v.node.Protect(keyspace, demand)
}

// Node returns the node that decides: for its HTTP endpoints (Routes), and to guard the
// program's own endpoints for operators.
func (v *Verifier) Node() *verifier.Node { return v.node }

// Log returns the log that the verifier follows. Unless Config.Log gave it, it has the
// rights of a verifier node.
func (v *Verifier) Log() *eventlog.Log { return v.log }

// Views returns the verifier's views.
func (v *Verifier) Views() *snapshots.Views { return v.views }

// Collectors returns the metrics of the verifier.
func (v *Verifier) Collectors() []prometheus.Collector {
	list := slices.Concat(v.node.Collectors(), v.views.Keys.Collectors(time.Now, v.end.seq))
	if v.views.Store != nil {
		list = append(list, v.views.Store.Collectors()...)
	}
	for _, s := range v.views.Savers {
		list = append(list, s.Collectors()...)
	}
	return list
}

// hold answers whoever asks for the node's name, once the ledger has claimed it.
func (v *Verifier) hold(ctx context.Context, name events.NodeID) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for v.ledger.Ready() != nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	host, _ := os.Hostname()
	return v.log.Hold(ctx, name, fmt.Sprintf("process %d on host %s", os.Getpid(), host))
}

// logEnd remembers where the log was last heard to end, for the metrics.
type logEnd struct{ last atomic.Uint64 }

func (e *logEnd) Apply(batch []events.Recorded) error {
	e.Fresh(0, batch[len(batch)-1].Seq)
	return nil
}

func (e *logEnd) Fresh(_ events.Time, last events.Seq) { e.last.Store(uint64(last)) }

func (e *logEnd) seq() events.Seq { return events.Seq(e.last.Load()) }
