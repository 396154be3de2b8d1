package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/audit"
	"github.com/keytrail/keytrail/cmd/internal/ops"
	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/commands/receipts"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog"
	"github.com/keytrail/keytrail/events/eventlog/streams"
	"github.com/keytrail/keytrail/events/tree"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/projections/snapshots"
	"github.com/keytrail/keytrail/verifier"
	"github.com/keytrail/keytrail/verifier/extauthz"
)

// node is what every role has in common: the log, the view folded from it, a
// verifier that guards its own endpoints, and one HTTP port. Each role adds parts.
//
// The order in which parts are added is the order in which they may rely on each
// other; ops.Group stops them in reverse.
type node struct {
	id       events.NodeID
	logger   *slog.Logger
	log      *eventlog.Log
	keys     *projections.Keys
	verifier *verifier.Node
	server   *ops.Server
	group    *ops.Group
	recorder *audit.Recorder        // who read the record, one for all endpoints of the process
	dir      *projections.Directory // of control, else nil
	signer   *tree.Signer           // of control that has checkpoint keys, else nil

	writeRelease events.Release // commands.Config.WriteRelease
	followers    []events.Follower
}

// drain is how long a stopping ledger goes on trying to store its uses: less than
// the share of ops.Group's grace that it has when nothing before it hangs, so that
// it can still say what it did.
const drain = 5 * time.Second

// nodeConfig is what a role is told.
type nodeConfig struct {
	Name   string // default: the host's name and the role
	Role   string // control, verifier, auditor, up
	Listen string // host:port
	Dir    string // where snapshots of the views are kept; "" keeps none
	// Sources are nodes that may have a snapshot where Dir has none.
	Sources []snapshots.Source
	// StaleCeiling is the oldest lease that the node answers on; 0 = the default.
	StaleCeiling time.Duration
	TakeOver     bool           // do not ask whether another process holds the name: fence it
	Trusted      []netip.Prefix // proxies whose X-Forwarded-For, X-Forwarded-Proto and Forwarded count
}

// newNode opens the log over nc, restores the view and prepares the verifier.
func (a *app) newNode(ctx context.Context, nc *nats.Conn, log *eventlog.Log, cfg nodeConfig, logger *slog.Logger) (*node, error) {
	n := &node{logger: logger, log: log, group: &ops.Group{Logger: logger}}
	n.id = nodeID(cfg)
	if err := n.id.Validate(); err != nil {
		return nil, usageError{fmt.Errorf("--name: %w", err)}
	}
	n.group.OnStop("log connection", func(context.Context) { nc.Close() })

	var fetched *snapshots.Store
	var err error
	if n.keys, n.dir, fetched, err = restoreViews(ctx, log, cfg, logger); err != nil {
		return nil, err
	}
	a.secrets.known.Store(n.keys)
	alive := log.Alive
	if cfg.TakeOver {
		alive = nil
	}
	ledger := verifier.NewLedger(verifier.LedgerConfig{Sink: log, Node: n.id, Log: log.ID(), Drain: drain, Alive: alive, Logger: logger})
	n.verifier = verifier.NewNode(verifier.NodeConfig{View: n.keys, Ledger: ledger, Leases: log, Log: log.ID(), StaleCeiling: cfg.StaleCeiling, TrustedProxies: cfg.Trusted, Logger: logger})
	n.recorder = audit.NewRecorder(log.Reads(), n.keys, "/keytrail/"+cfg.Role+"/"+string(n.id), time.Now)
	end := new(logEnd)
	n.followers = []events.Follower{n.keys, n.verifier, end}
	views := []projections.View{n.keys}
	if n.dir != nil {
		n.followers = append(n.followers, n.dir)
		views = append(views, n.dir)
	}

	if n.server, err = ops.Listen(cfg.Listen, logger); err != nil {
		return nil, err
	}
	n.server.Role = cfg.Role
	n.server.Registry.MustRegister(n.verifier.Collectors()...)
	n.server.Registry.MustRegister(n.keys.Collectors(time.Now, end.seq)...)
	n.server.Check("verifier", n.verifier.Ready)
	n.server.Warn("log", log.Storing)
	if cfg.Role != "verifier" { // whose account may not ask
		n.server.Registry.MustRegister(newStreamMetrics(log))
		n.group.Go("streams", log.Watch)
	}
	n.server.Warn("clock", n.verifier.Clock)
	n.group.Go("lease", n.verifier.RunLease)
	n.group.Go("answers", func(ctx context.Context) error { return n.verifier.RunAnswers(ctx, log) })
	n.group.GoLong("ledger", ledger.Run)
	n.group.Go("name", func(ctx context.Context) error { return n.hold(ctx, ledger) })
	sender := &snapshots.Sender{Log: log.ID(), Views: views, Logger: logger}
	if fetched != nil {
		sender.Proven = fetched.Proven
		n.server.Registry.MustRegister(fetched.Collectors()...)
		n.group.Go("fetched snapshot", fetched.Run)
	}
	sender.Routes(n.server.Mux, n.verifier)
	if cfg.controls() {
		n.scrub(cfg.Dir, fetched)
	}
	if cfg.Dir != "" {
		for _, v := range views {
			saver := &projections.Saver{View: v, Dir: cfg.Dir, Log: log.ID(), Logger: logger}
			n.server.Registry.MustRegister(saver.Collectors()...)
			n.group.Go("snapshots of "+v.Name(), saver.Run)
		}
	}
	return n, nil
}

// hold answers whoever asks for the node's name, once the ledger has claimed it.
func (n *node) hold(ctx context.Context, ledger *verifier.Ledger) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ledger.Ready() != nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	host, _ := os.Hostname()
	return n.log.Hold(ctx, n.id, fmt.Sprintf("process %d on host %s", os.Getpid(), host))
}

// logEnd remembers where the log was last heard to end, for the metrics.
type logEnd struct{ last atomic.Uint64 }

func (e *logEnd) Apply(batch []events.Recorded) error {
	e.Fresh(0, batch[len(batch)-1].Seq)
	return nil
}

func (e *logEnd) Fresh(_ events.Time, last events.Seq) { e.last.Store(uint64(last)) }

func (e *logEnd) seq() events.Seq { return events.Seq(e.last.Load()) }

var notNodeChar = regexp.MustCompile(`[^A-Za-z0-9_-]+`)

// nodeID returns the configured name, or one made of the host's name, the role
// and the port, so that two nodes on one host keep ledgers of their own.
func nodeID(cfg nodeConfig) events.NodeID {
	name := cfg.Name
	if name == "" {
		host, _ := os.Hostname()
		name = strings.Trim(notNodeChar.ReplaceAllString(host, "-"), "-")
		if len(name) > 50 {
			name = name[:50]
		}
		_, port, _ := net.SplitHostPort(cfg.Listen) // ops.Listen reports its fault
		name = strings.Trim(name+"-"+cfg.Role+"-"+port, "-")
	}
	return events.NodeID(name)
}

// control adds the write side: commands, expirer and heartbeat, and ends the
// epochs of nodes that are gone.
func (n *node) control(lastUsed func(context.Context, []events.KeyID) (map[events.KeyID]events.Time, error)) {
	nodes := receipts.NewObserver(n.log, n.logger)
	n.server.Registry.MustRegister(nodes)
	n.group.Go("nodes", nodes.Run)
	issue := receipts.IssuerConfig{Nodes: nodes, Leases: n.log, Prompts: n.log, Control: n.id, Logger: n.logger}
	if n.signer != nil {
		issue.Signer = n.signer.Note(receipts.KeySuffix)
	}
	h := commands.New(commands.Config{Log: n.log, Leases: n.log, Nodes: nodes, Receipts: receipts.NewIssuer(issue), Confirm: n.verifier.Confirm, Dir: n.dir, Node: n.id, Logger: n.logger, WriteRelease: n.writeRelease, LastUsed: lastUsed, Walk: n.recorder.Walk, Recording: n.log.Recording, Reserved: n.log.Reserved})
	h.Routes(n.server.Mux, n.verifier)
	x := commands.NewExpirer(commands.ExpirerConfig{Log: n.log, Leases: n.log, Timers: n.log, Dir: n.dir, Node: n.id, Logger: n.logger})
	n.server.Registry.MustRegister(h.Collectors()...)
	n.server.Registry.MustRegister(x.Collectors()...)
	n.server.Registry.MustRegister(n.dir.Collectors()...)
	limited := limitMetrics()
	n.server.Registry.MustRegister(limited)
	n.group.Go("limits", func(ctx context.Context) error {
		return n.log.Limited(ctx, func(met streams.Limit) { limited.WithLabelValues(string(met.Node), met.Limit).Add(float64(met.Times)) })
	})
	n.group.Go("heartbeat", n.log.Heartbeat)
	n.group.Go("floor", h.Run)
	n.group.Go("release", h.RunRelease)
	n.group.Go("expirer", x.Run)
	closer := verifier.NewCloser(verifier.CloserConfig{Sink: n.log, Leases: n.log, Log: n.log.ID(), Logger: n.logger})
	n.group.Go("closer", closer.Run)
}

// auditor adds the copy in ClickHouse and its endpoint. The store may be down: the
// endpoint answers 503 until it is up, and the writer catches up exactly. A copy that
// cannot go on ends the process only when it is alone: beside a verifier and
// control, the endpoint says so and they go on.
func (n *node) auditor(dsn string, alone bool) *auditor {
	au := &auditor{node: n, dsn: dsn, attach: audit.Open, alone: alone, metrics: audit.NewWriterMetrics()}
	n.server.Registry.MustRegister(au.metrics.Collectors()...)
	n.group.Go("audit lag", func(ctx context.Context) error { return au.metrics.Watch(ctx, n.log, n.log.Reads(), n.log) })
	n.server.Mux.Handle("/v1/audit/", au)
	n.server.Check("audit", au.ready)
	n.group.GoLong("auditor", au.run) // an insert in flight ends, and its connections are closed
	return au
}

// auditor opens the store when it can and runs the writer on it.
type auditor struct {
	node   *node
	dsn    string
	attach func(context.Context, audit.StoreConfig) (*audit.Store, error)
	alone  bool

	metrics *audit.WriterMetrics // nil if it does not write

	store    atomic.Pointer[audit.Store]
	endpoint atomic.Pointer[http.ServeMux]
	failed   atomic.Pointer[error] // why the copy cannot go on
	waits    atomic.Pointer[error] // why the store was not opened at the last try
}

func (au *auditor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := au.failed.Load(); err != nil {
		api.Write(w, r, api.Errorf(http.StatusServiceUnavailable, "copy_stopped", "the copy of the record has stopped and cannot be trusted; the process's log says why"))
		return
	}
	if mux := au.endpoint.Load(); mux != nil {
		mux.ServeHTTP(w, r)
		return
	}
	api.Write(w, r, api.Unavailable(2, "%s; nothing is lost, the record catches up when it can", au.waiting()))
}

// ready reports whether the store has been opened, and the copy goes on.
func (au *auditor) ready() error {
	if err := au.failed.Load(); err != nil {
		return errors.New("the copy has stopped; the process's log says why")
	}
	if au.endpoint.Load() == nil {
		return errors.New(au.waiting())
	}
	return nil
}

// waiting says why the store is not open yet.
func (au *auditor) waiting() string {
	var fault *audit.Fault
	switch err := au.waits.Load(); {
	case err == nil:
		return "ClickHouse has not answered yet"
	case errors.As(*err, &fault):
		return fault.Reason
	default:
		return (*err).Error()
	}
}

// lastUsed answers from the copy; it knows nothing while the store is down.
func (au *auditor) lastUsed(ctx context.Context, ids []events.KeyID) (map[events.KeyID]events.Time, error) {
	s := au.store.Load()
	if s == nil {
		return nil, events.ErrUnavailable
	}
	return s.LastUsed(ctx, ids)
}

func (au *auditor) run(ctx context.Context) error {
	err := au.copy(ctx)
	if err == nil || au.alone || ctx.Err() != nil || au.endpoint.Load() == nil {
		return err // a copy that was never served is a mistake of the set-up
	}
	au.node.logger.ErrorContext(ctx, "the copy of the record has stopped; keys are verified and changed without it", "err", err)
	au.failed.Store(&err)
	<-ctx.Done()
	return ctx.Err()
}

func (au *auditor) copy(ctx context.Context) error {
	n := au.node
	store, err := au.open(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	w := audit.NewWriter(audit.WriterConfig{Store: store, Log: n.log, Reads: n.log.Reads(), Uses: n.log, History: n.keys, Metrics: au.metrics, Logger: n.logger})
	mux := http.NewServeMux()
	ops.Fallback(mux)
	audit.NewHandler(audit.HandlerConfig{Store: store, Log: n.log, Recorder: n.recorder, Logger: n.logger}).Routes(mux, n.verifier)
	au.store.Store(store)
	au.endpoint.Store(mux)
	return w.Run(ctx)
}

// lastUsedFrom lets control ask the auditor's ClickHouse when keys were last
// used. It attaches to the store once it can be reached and the auditor has made
// its tables, and knows nothing before. A fault of the store never ends control:
// keys must be revocable without it.
func (n *node) lastUsedFrom(dsn string) func(context.Context, []events.KeyID) (map[events.KeyID]events.Time, error) {
	au := &auditor{node: n, dsn: dsn, attach: audit.Attach}
	n.group.Go("last used", func(ctx context.Context) error {
		store, err := au.open(ctx)
		if err == nil {
			defer store.Close()
			au.store.Store(store)
		} else if ctx.Err() == nil {
			n.logger.ErrorContext(ctx, "keys are shown without their last use until control is restarted", "err", err)
		}
		<-ctx.Done()
		return ctx.Err()
	})
	return au.lastUsed
}

// open waits for ClickHouse, and for its tables, with a growing pause. Only what
// waiting cannot mend is an error.
func (au *auditor) open(ctx context.Context) (*audit.Store, error) {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		store, err := au.attach(ctx, audit.StoreConfig{DSN: au.dsn, Logger: au.node.logger})
		if err == nil {
			if err = store.CheckLog(ctx, au.node.log.ID()); err == nil {
				return store, nil
			}
			store.Close()
		}
		if !errors.Is(err, audit.ErrUnavailable) && !errors.Is(err, audit.ErrNotMigrated) {
			return nil, err
		}
		au.waits.Store(&err)
		au.node.logger.Warn("the copy in ClickHouse cannot be opened yet, trying again", "err", err, "pause", pause)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// run adds what comes last, the fold and the endpoint, then runs everything. ready
// is called once the node answers.
func (n *node) run(ctx context.Context, ready func() error) error {
	n.verifier.Routes(n.server.Mux)
	extauthz.Routes(n.server.Mux, n.verifier, n.logger)
	n.group.Go("view", func(ctx context.Context) error {
		return projections.Follow(ctx, n.log, n.followers...)
	})
	n.group.GoLong("http server", n.server.Run)
	n.group.Go("ready", func(ctx context.Context) error {
		t := time.NewTicker(5 * time.Millisecond)
		defer t.Stop()
		for {
			if n.server.Ready() == nil {
				if err := ready(); err != nil {
					return err
				}
				<-ctx.Done()
				return ctx.Err()
			}
			select {
			case <-t.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	return n.group.Run(ctx)
}
