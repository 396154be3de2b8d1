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
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog"
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/schemas/api"
	"github.com/keytrail/keytrail/verifier"
	"github.com/keytrail/keytrail/verifier/extauthz"
)

// node is what every role has in common: the log, the view folded from it, a
// verifier that guards its own doors, and one HTTP port. Each role adds parts.
//
// The order in which parts are added is the order in which they may rely on each
// other; ops.Group stops them in reverse.
type node struct {
	id        events.NodeID
	logger    *slog.Logger
	log       *eventlog.Log
	keys      *projections.Keys
	verifier  *verifier.Node
	server    *ops.Server
	group     *ops.Group
	recorder  *audit.Recorder // who read the record, one for all doors of the process
	followers []events.Follower
	after     events.Seq // where the followers begin
}

// drain is how long a stopping ledger goes on trying to store its uses: less than
// ops.Group's grace, so that it can still say what it did.
const drain = 8 * time.Second

// nodeConfig is what a role is told.
type nodeConfig struct {
	Name    string         // default: the host's name and the role
	Role    string         // control, verifier, auditor, up
	Listen  string         // host:port
	Dir     string         // where snapshots of the view are kept; "" keeps none
	Trusted []netip.Prefix // proxies whose X-Forwarded-For and X-Forwarded-Proto count
}

// newNode opens the log over nc, restores the view and prepares the verifier.
func (a *app) newNode(ctx context.Context, nc *nats.Conn, log *eventlog.Log, cfg nodeConfig, logger *slog.Logger) (*node, error) {
	n := &node{logger: logger, log: log, group: &ops.Group{Logger: logger}}
	n.id = nodeID(cfg)
	if err := n.id.Validate(); err != nil {
		return nil, usageError{fmt.Errorf("--name: %w", err)}
	}
	n.group.OnStop("log connection", func(context.Context) { nc.Close() })

	var err error
	if n.keys, err = restoreKeys(ctx, log, cfg.Dir, logger); err != nil {
		return nil, err
	}
	ledger := verifier.NewLedger(verifier.LedgerConfig{Sink: log, Node: n.id, Log: log.ID(), Drain: drain, Logger: logger})
	n.verifier = verifier.NewNode(verifier.NodeConfig{View: n.keys, Ledger: ledger, Log: log.ID(), TrustedProxies: cfg.Trusted, Logger: logger})
	n.recorder = audit.NewRecorder(log, "/keytrail/"+cfg.Role+"/"+string(n.id), time.Now)
	end := new(logEnd)
	n.followers = []events.Follower{n.keys, n.verifier, end}
	n.after = n.keys.At()

	if n.server, err = ops.Listen(cfg.Listen, logger); err != nil {
		return nil, err
	}
	n.server.Registry.MustRegister(n.verifier.Collectors()...)
	n.server.Registry.MustRegister(n.keys.Collectors(time.Now, end.seq)...)
	n.server.Check("verifier", n.verifier.Ready)
	n.group.Go("ledger", ledger.Run)
	if cfg.Dir != "" {
		saver := &projections.Saver{View: n.keys, Dir: cfg.Dir, Log: log.ID(), Logger: logger}
		n.server.Registry.MustRegister(saver.Collectors()...)
		n.group.Go("snapshots", saver.Run)
	}
	return n, nil
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
		_, port, _ := net.SplitHostPort(cfg.Listen) // ops.Listen tells what is wrong with it
		name = strings.Trim(name+"-"+cfg.Role+"-"+port, "-")
	}
	return events.NodeID(name)
}

// restoreKeys loads the newest good snapshot, or starts empty. A snapshot that is
// ahead of the log means that the log has lost events, and is refused.
func restoreKeys(ctx context.Context, log *eventlog.Log, dir string, logger *slog.Logger) (*projections.Keys, error) {
	if dir == "" {
		return projections.NewKeys(), nil
	}
	last, err := log.Last(ctx)
	if err != nil {
		return nil, err
	}
	keys, refused, err := projections.LoadFile(dir, log.ID(), last)
	for _, r := range refused {
		logger.Warn("snapshot passed over", "err", r)
	}
	if err == nil && keys.At() > 0 {
		logger.Info("view restored from a snapshot", "seq", uint64(keys.At()), "keys", keys.Len())
	}
	return keys, err
}

// control adds the write side: commands, expirer and heartbeat.
func (n *node) control(lastUsed func(context.Context, []events.KeyID) (map[events.KeyID]events.Time, error)) {
	dir := projections.NewDirectory()
	n.followers = append(n.followers, dir)
	n.after = 0 // the directory has no snapshot; the other views ignore what they have
	h := commands.New(commands.Config{Log: n.log, Dir: dir, Node: n.id, Logger: n.logger, LastUsed: lastUsed, Record: n.recorder.Record})
	h.Routes(n.server.Mux, n.verifier)
	x := commands.NewExpirer(commands.ExpirerConfig{Log: n.log, Timers: n.log, Node: n.id, Logger: n.logger})
	n.server.Registry.MustRegister(h.Collectors()...)
	n.server.Registry.MustRegister(x.Collectors()...)
	n.server.Registry.MustRegister(dir.Collectors()...)
	n.group.Go("heartbeat", n.log.Heartbeat)
	n.group.Go("expirer", x.Run)
}

// auditor adds the copy in ClickHouse and its door. The store may be down: the
// door answers 503 until it is up, and the writer catches up exactly. A copy that
// cannot go on ends the process only when it is alone: beside a verifier and
// control, the door says so and they go on.
func (n *node) auditor(dsn string, alone bool) *auditor {
	au := &auditor{node: n, dsn: dsn, alone: alone}
	n.server.Mux.Handle("/v1/audit/", au)
	n.server.Check("audit", au.ready)
	n.group.Go("auditor", au.run)
	return au
}

// auditor opens the store when it can and runs the writer on it.
type auditor struct {
	node   *node
	dsn    string
	alone  bool
	store  atomic.Pointer[audit.Store]
	door   atomic.Pointer[http.ServeMux]
	failed atomic.Pointer[error] // why the copy cannot go on
}

func (au *auditor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := au.failed.Load(); err != nil {
		api.Write(w, r, api.Errorf(http.StatusServiceUnavailable, "copy_stopped", "the copy of the record has stopped and cannot be trusted; the process's log says why"))
		return
	}
	if mux := au.door.Load(); mux != nil {
		mux.ServeHTTP(w, r)
		return
	}
	api.Write(w, r, api.Unavailable(2, "ClickHouse cannot be reached; nothing is lost, the record catches up when it is back"))
}

// ready reports whether the store has been opened, and the copy goes on.
func (au *auditor) ready() error {
	if err := au.failed.Load(); err != nil {
		return errors.New("the copy has stopped; the process's log says why")
	}
	if au.door.Load() == nil {
		return errors.New("ClickHouse has not been reached yet")
	}
	return nil
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
	if err == nil || au.alone || ctx.Err() != nil || au.door.Load() == nil {
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
	w := audit.NewWriter(audit.WriterConfig{Store: store, Log: n.log, Uses: n.log, Logger: n.logger})
	mux := http.NewServeMux()
	ops.Fallback(mux)
	audit.NewDoor(audit.DoorConfig{Store: store, Log: n.log, Now: time.Now, Node: n.id, Recorder: n.recorder, Logger: n.logger}).Routes(mux, n.verifier)
	n.server.Registry.MustRegister(w.Collectors()...)
	au.store.Store(store)
	au.door.Store(mux)
	return w.Run(ctx)
}

// lastUsedFrom lets control ask the auditor's ClickHouse when keys were last
// used. It opens the store when it can be reached, and knows nothing before. What
// is wrong with the store never ends control: keys must be revocable without it.
func (n *node) lastUsedFrom(dsn string) func(context.Context, []events.KeyID) (map[events.KeyID]events.Time, error) {
	au := &auditor{node: n, dsn: dsn}
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

// open waits for ClickHouse with a growing pause; only what waiting cannot mend
// is an error.
func (au *auditor) open(ctx context.Context) (*audit.Store, error) {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		store, err := audit.Open(ctx, audit.StoreConfig{DSN: au.dsn, Logger: au.node.logger})
		if err == nil {
			if err = store.CheckLog(ctx, au.node.log.ID()); err == nil {
				return store, nil
			}
			store.Close()
		}
		if !errors.Is(err, audit.ErrUnavailable) {
			return nil, err
		}
		au.node.logger.Warn("ClickHouse cannot be reached, trying again", "err", err, "pause", pause)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// run adds what comes last, the fold and the door, then runs everything. ready
// is called once the node answers.
func (n *node) run(ctx context.Context, ready func() error) error {
	n.verifier.Routes(n.server.Mux)
	extauthz.Routes(n.server.Mux, n.verifier, n.logger)
	n.group.Go("view", func(ctx context.Context) error {
		return projections.Follow(ctx, n.log, n.after, n.followers...)
	})
	n.group.Go("door", n.server.Run)
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
