package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
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
	"github.com/keytrail/keytrail/internal/parts"
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/projections/snapshots"
	"github.com/keytrail/keytrail/verifier"
	"github.com/keytrail/keytrail/verifier/embed"
	"github.com/keytrail/keytrail/verifier/extauthz"
	"github.com/keytrail/keytrail/verifier/limits"
)

// node is what every role has in common: a verifier (verifier/embed) that guards its own
// endpoints, and one HTTP port. Each role adds parts.
//
// The order in which parts are added is the order in which they may rely on each
// other; parts.Group stops them in reverse.
type node struct {
	id       events.NodeID
	logger   *slog.Logger
	log      *eventlog.Log
	keys     *projections.Keys
	verifier *verifier.Node
	server   *ops.Server
	group    *parts.Group
	recorder *audit.Recorder        // who read the record, one for all endpoints of the process
	dir      *projections.Directory // of control, else nil
	signer   *tree.Signer           // of control that has checkpoint keys, else nil
	files    string                 // directory of control's own files; "" = none

	writeRelease events.Release // commands.Config.WriteRelease
}

// nodeConfig is what a role is told.
type nodeConfig struct {
	embed.Config        // Name: default the host's name and the role
	Role         string // control, verifier, auditor, up
	Listen       string // host:port
}

// controls reports whether the role has the write side, and so the directory.
func (c *nodeConfig) controls() bool { return c.Role == "control" || c.Role == "up" }

// newNode makes the node of a role. nc is the connection of cfg.Log, nil where the
// verifier connects.
func (a *app) newNode(ctx context.Context, nc *nats.Conn, cfg nodeConfig, logger *slog.Logger) (*node, error) {
	n := &node{id: cfg.Name, logger: logger, group: &parts.Group{Logger: logger}}
	if nc != nil {
		n.group.OnStop("log connection", func(context.Context) { nc.Close() })
	}
	dir := cfg.Dir
	if cfg.controls() {
		var err error
		if cfg.Views, err = snapshots.Restore(ctx, snapshots.Config{Dir: dir, Log: cfg.Log, Sources: cfg.Sources, Logger: logger}, true); err != nil {
			return nil, err
		}
		cfg.Dir, cfg.Sources = "", nil
	}
	cfg.Logger = logger
	v, err := embed.New(ctx, cfg.Config)
	if err != nil {
		return nil, err
	}
	views := v.Views()
	n.log, n.verifier, n.keys, n.dir = v.Log(), v.Node(), views.Keys, views.Directory
	a.secrets.known.Store(n.keys)
	n.recorder = audit.NewRecorder(n.log.Reads(), n.keys, "/keytrail/"+cfg.Role+"/"+string(n.id), time.Now)

	if n.server, err = ops.Listen(cfg.Listen, logger); err != nil {
		return nil, err
	}
	n.server.Role = cfg.Role
	n.server.Registry.MustRegister(v.Collectors()...)
	n.server.Check("verifier", v.Ready)
	n.server.Warn("log", n.log.Storing)
	if cfg.Role != "verifier" { // whose account may not ask
		n.server.Registry.MustRegister(newStreamMetrics(n.log))
		n.group.Go("streams", n.log.Watch)
	}
	n.server.Warn("clock", n.verifier.Clock)
	n.group.GoLong("verifier", v.Run)
	views.Sender(n.log.ID(), logger).Routes(n.server.Mux, n.verifier)
	if cfg.controls() {
		n.files = dir
		n.scrub(dir, views.Store)
	}
	return n, nil
}

var notNodeChar = regexp.MustCompile(`[^A-Za-z0-9_-]+`)

// nodeID returns the configured name, or one made of the host's name, the role
// and the port, so that two nodes on one host keep ledgers of their own.
func nodeID(cfg *nodeConfig) events.NodeID {
	name := string(cfg.Name)
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
	lease := limits.ServiceConfig{Dir: n.dir, Appointments: n.log, Wanted: n.exactLimits}
	keepAccount(&lease, n.files)
	allocator := n.verifier.LimitService(lease)
	n.server.Registry.MustRegister(allocator.Collectors()...)
	n.group.GoLong("allocator of limits", allocator.Run)
	n.group.Go("limits of nodes", func(ctx context.Context) error {
		return n.log.Limited(ctx, func(met streams.Limit) { limited.WithLabelValues(string(met.Node), met.Limit).Add(float64(met.Times)) })
	})
	n.group.Go("heartbeat", n.log.Heartbeat)
	n.group.Go("floor", h.Run)
	n.group.Go("release", h.RunRelease)
	n.group.Go("expirer", x.Run)
	closer := verifier.NewCloser(verifier.CloserConfig{Sink: n.log, Leases: n.log, Log: n.log.ID(), Logger: n.logger})
	n.group.Go("closer", closer.Run)
}

// exactLimits reports whether a keyspace has limits that hold for all nodes together.
func (n *node) exactLimits() bool {
	return slices.ContainsFunc(n.dir.Keyspaces(), func(k events.Keyspace) bool { return k.Definition.Limits.Exact() })
}

// auditor adds the copy in ClickHouse and its endpoint. The store may be down: the
// endpoint answers 503 until it is up, and the writer catches up exactly. A copy that
// cannot go on ends the process only when it is alone: beside a verifier and
// control, the endpoint says so and they go on.
func (n *node) auditor(dsn waitDSN, alone bool) *auditor {
	au := &auditor{node: n, dsn: dsn, attach: audit.Open, alone: alone, metrics: audit.NewWriterMetrics()}
	n.server.Registry.MustRegister(au.metrics.Collectors()...)
	n.group.Go("audit lag", func(ctx context.Context) error { return au.metrics.Watch(ctx, n.log, n.log.Reads(), n.log) })
	n.server.Mux.Handle("/v1/audit/", au)
	n.server.Check("audit", au.ready)
	n.group.GoLong("auditor", au.run) // an insert in flight ends, and its connections are closed
	return au
}

// waitDSN returns the DSN of ClickHouse once it is known, or an error when ctx ends.
type waitDSN func(ctx context.Context) (string, error)

// fixedDSN is one that the operator has named.
func fixedDSN(dsn string) waitDSN {
	return func(context.Context) (string, error) { return dsn, nil }
}

// auditor opens the store when it can and runs the writer on it.
type auditor struct {
	node   *node
	dsn    waitDSN
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
	au := &auditor{node: n, dsn: fixedDSN(dsn), attach: audit.Attach}
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
	dsn, err := au.dsn(ctx)
	if err != nil {
		return nil, err
	}
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		store, err := au.attach(ctx, audit.StoreConfig{DSN: dsn, Logger: au.node.logger})
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

// run adds what comes last, the endpoint, then runs everything. ready is called once
// the node answers.
func (n *node) run(ctx context.Context, ready func() error) error {
	n.verifier.Routes(n.server.Mux)
	extauthz.Routes(n.server.Mux, n.verifier, n.logger)
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
